"""One user's WebSocket, from the first message to the last."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import ClientError, WSMsgType, web

from s2s_talk.guest import Guest
from s2s_talk.hall import Hall
from s2s_talk.protocol import Code, Refused, check_stop, error, frame_of_bytes

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 1 << 20  # bytes; a larger one isn't even read, and ends in code 1009
SEND_BUFFER = 1 << 16  # bytes in the system's hands: what a user doesn't read then shows within seconds
GOODBYE_S = 2.0  # how long a user may take to read why the conversation ended
LONGEST_REASON = 120  # bytes; a close frame holds 123


async def visit(request: web.Request, hall: Hall, first_message: dict[str, Any]) -> web.WebSocketResponse:
    """Talk with one user until either side ends it."""
    ws = web.WebSocketResponse(
        heartbeat=hall.limits.heartbeat_s, max_msg_size=LARGEST_MESSAGE, timeout=GOODBYE_S, compress=False
    )
    await ws.prepare(request)
    _send_promptly(request)
    why = await _stay(ws, hall, first_message)
    log.info("a conversation ended: %s", why or "the user is gone")
    if why is not None:
        await _say_goodbye(ws, why)
    if not ws.closed and request.transport is not None:
        request.transport.abort()
    return ws


async def _stay(ws: web.WebSocketResponse, hall: Hall, first_message: dict[str, Any]) -> Refused | None:
    """Keep a place while the user talks; return why it ended, None if the user is gone."""
    try:
        guest = hall.enter()
    except Refused as full:
        return full
    try:
        guest.tell(first_message)
        return await _first_end(_listen(ws, guest, hall), _speak(ws, guest), _watch(guest, hall.limits.idle_s))
    finally:
        hall.leave(guest)


async def _first_end(*parts: Coroutine[Any, Any, Refused | None]) -> Refused | None:
    """Run all until one returns or raises; return what it tells."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # a user's mistake tells more than that the socket is closed
        ends = [_outcome(task) for task in done]
        return next((end for end in ends if end is not None), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(task: "asyncio.Task[Refused | None]") -> Refused | None:
    failure = task.exception()
    if failure is None:
        return task.result()
    if isinstance(failure, Refused):
        return failure
    if isinstance(failure, (OSError, ClientError)):  # the connection broke
        return None
    raise failure


async def _listen(ws: web.WebSocketResponse, guest: Guest, hall: Hall) -> Refused | None:
    """Take in what the user sends; return None when the socket is closed."""
    async for message in ws:
        if message.type is WSMsgType.BINARY:
            guest.inbox.put(frame_of_bytes(message.data, hall.format), time.monotonic())
            hall.heard_from()
        elif message.type is WSMsgType.TEXT:
            check_stop(message.data)
            return Refused(Code.DONE, "the user ended the conversation")
    return None


async def _speak(ws: web.WebSocketResponse, guest: Guest) -> Refused | None:
    """Send what there is to send; return when the hall wants an end."""
    while True:
        message = await guest.next_message()
        if isinstance(message, str):
            await ws.send_str(message)
        else:
            await ws.send_bytes(message)


async def _watch(guest: Guest, idle_s: float) -> Refused | None:
    """Return when the hall ends the conversation at once, or no audio has come for `idle_s`."""
    while (left_s := guest.inbox.last_came_at_s + idle_s - time.monotonic()) > 0:
        with suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(guest.ended), left_s)
    return Refused(Code.IDLE, f"no audio came for {idle_s:g} s: is the microphone still there?")


async def _say_goodbye(ws: web.WebSocketResponse, why: Refused) -> None:
    """Tell the user why it ended, if they still read."""
    reason = why.text.encode()[:LONGEST_REASON].decode(errors="ignore").encode()
    with suppress(TimeoutError, OSError, ClientError, RuntimeError):  # gone, or not reading
        async with asyncio.timeout(GOODBYE_S):
            if why.code is not Code.DONE:
                await ws.send_str(json.dumps(error(why)))
            await ws.close(code=why.code, message=reason)


def _send_promptly(request: web.Request) -> None:
    """Keep little in the system's send buffer, so that a user who doesn't read is noticed."""
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
