"""The server: the page's files, the WebSocket, and the way from start to end."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web

from s2s_talk.addresses import why_not_host, why_not_origin
from s2s_talk.hall import Hall
from s2s_talk.protocol import PATH, Code, Limits, Refused, hello
from s2s_talk.talker import Talker
from s2s_talk.visit import visit

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
SHUTDOWN_S = 5.0  # for the goodbyes
HEADERS = {
    # nothing from elsewhere, and no frame of another page's around this one
    "Content-Security-Policy": "default-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",  # another version of the server, another page
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(talker: Talker, hall: Hall, *, allow_remote: bool) -> web.Application:
    """The routes, and the checks in front of them."""
    first_message = hello(talker.format, hall.limits, talker.latency_s, talker.writes_user_text)

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        why_not = why_not_host(request.headers.get("Host"), allow_remote=allow_remote)
        if why_not is not None:
            raise web.HTTPForbidden(text=f"refused: {why_not}\n")
        return await handler(request)

    async def index(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(PAGE / "index.html")

    async def talk(request: web.Request) -> web.StreamResponse:
        why_not = why_not_origin(request.headers.get("Origin"), request.headers.get("Host"))
        if why_not is not None:
            raise web.HTTPForbidden(text=f"refused: {why_not}\n")
        return await visit(request, hall, first_message)

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)

    app = web.Application(middlewares=[guard])
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/", index)
    app.router.add_get(PATH, talk)
    app.router.add_static("/page", PAGE)
    return app


@asynccontextmanager
async def serving(
    talker: Talker, limits: Limits, worker: Executor, *, host: str, port: int, allow_remote: bool = False
) -> AsyncIterator[tuple[str, "asyncio.Task[None]"]]:
    """Serve; give the page's address, with the port that 0 became, and the clock, which ends if it fails.

    At the end all users are told goodbye.
    """
    hall = Hall(talker, limits, worker)
    runner = web.AppRunner(
        make_app(talker, hall, allow_remote=allow_remote), access_log=None, shutdown_timeout=SHUTDOWN_S
    )
    clock = asyncio.create_task(hall.run())
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        name = "localhost" if host in ("127.0.0.1", "::1") else f"[{host}]" if ":" in host else host
        yield f"http://{name}:{runner.addresses[0][1]}/", clock
    finally:
        hall.send_all_away(Refused(Code.GOING_AWAY, "the server is being stopped"))
        await runner.cleanup()
        clock.cancel()
        with suppress(asyncio.CancelledError):
            await clock


async def serve(talker: Talker, limits: Limits, worker: Executor, *, host: str, port: int, allow_remote: bool) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        OSError: the port is taken.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    serving_here = serving(talker, limits, worker, host=host, port=port, allow_remote=allow_remote)
    async with serving_here as (address, clock):
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait([stopped, clock], return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            stopped.cancel()
            clock.result()  # raises what it failed with
    print("stopped", flush=True)
