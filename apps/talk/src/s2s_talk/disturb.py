"""Users who behave badly, beside those that are measured: rubbish, slow, stalled, vanished."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import cycle
from typing import Any

import aiohttp

from s2s_talk.protocol import Code
from s2s_talk.user import connected

PAUSE_S = 0.2  # between two of a kind
RUBBISH: tuple[bytes | str, ...] = (
    b"",
    b"\0" * 100,
    b"\0\0\xc0\x7f" * 1280,  # float32 NaN
    b"\0" * (1 << 19),
    "audio",
    '{"type": "launch"}',
    "[" * 100,
)
SOME_FRAMES = 5
UNJUDGED = ": gone"  # of whom nothing can be seen from here
AS_EXPECTED = ": as expected"
DRAIN_S = 1.0  # in which one who reads again gets what waited

Bad = Callable[[str], Awaitable[str]]


async def rubbish(url: str) -> str:
    """Send a frame, then each kind of rubbish in turn, in a conversation each."""
    ends = set()
    for message in RUBBISH:
        async with connected(url) as ws:
            await _send_frames(ws, await _hello(ws), 1)
            await (ws.send_bytes(message) if isinstance(message, bytes) else ws.send_str(message))
            ends.add(await _end(ws))
    return _as_expected(ends, {Code.RUBBISH}, "rubbish")


async def too_fast(url: str) -> str:
    """Send a minute of audio at once."""
    async with connected(url) as ws:
        with suppress(ConnectionError, aiohttp.ClientError):  # the server may close while it is sent
            await _send_frames(ws, await _hello(ws), 750)
        return _as_expected({await _end(ws)}, {Code.TOO_FAST, 1006}, "too fast")


async def vanished(url: str) -> str:
    """Send some frames, then be gone without a word."""
    async with connected(url) as ws:
        await _send_frames(ws, await _hello(ws), SOME_FRAMES)
        connection = ws._response.connection  # no public way is this rude
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
    return f"vanished{UNJUDGED}"


async def silent(url: str) -> str:
    """Send some frames, then nothing more."""
    async with connected(url) as ws:
        hello = await _hello(ws)
        await _send_frames(ws, hello, SOME_FRAMES)
        async with asyncio.timeout(3 * hello["idle_s"]):
            return _as_expected({await _end(ws)}, {Code.IDLE}, "silent")


async def deaf(url: str) -> str:
    """Send in real time, and read nothing, for a while."""
    async with connected(url) as ws:
        hello = await _hello(ws)
        reader = ws._response.connection
        if reader is not None and reader.transport is not None:
            reader.transport.pause_reading()
        with suppress(ConnectionError, aiohttp.ClientError):
            for _ in range(SOME_FRAMES * 20):
                await _send_frames(ws, hello, 1)
                await asyncio.sleep(hello["frame_length_s"])
        if reader is not None and reader.transport is not None:
            reader.transport.resume_reading()
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                return _as_expected({await _end(ws)}, {Code.SLOW, 1006}, "deaf")
    return f"deaf{UNJUDGED}"  # what it left unread found room in the system's buffers


LANES: tuple[tuple[Bad, ...], ...] = ((rubbish, too_fast, vanished), (deaf, silent))  # those of one come in turn


async def disturb(url: str, outcomes: "Counter[str]") -> None:
    """Let one of each lane be there all the time, until cancelled; count how it ended for them."""
    await asyncio.gather(*(_come_in_turn(lane, url, outcomes) for lane in LANES))


async def _come_in_turn(lane: tuple[Bad, ...], url: str, outcomes: "Counter[str]") -> None:
    for kind in cycle(lane):
        try:
            outcomes[await kind(url)] += 1
        except (TimeoutError, ConnectionError, aiohttp.ClientError, ValueError) as error:
            outcomes[f"{kind.__name__}: {type(error).__name__} {error}"] += 1
        await asyncio.sleep(PAUSE_S)


async def _hello(ws: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await ws.receive_str())
    if message["type"] != "hello":
        raise ValueError(f"no place: {message}")
    return message


async def _send_frames(ws: aiohttp.ClientWebSocketResponse, hello: dict[str, Any], number: int) -> None:
    for _ in range(number):
        await ws.send_bytes(b"\0\0" * int(hello["source_samples_per_frame"]))


async def _end(ws: aiohttp.ClientWebSocketResponse) -> int:
    """Read to the end; return the close code."""
    async for _ in ws:
        pass
    return int(ws.close_code or 0)


def _as_expected(ends: set[int], expected: set[int], name: str) -> str:
    return f"{name}{AS_EXPECTED}" if ends <= expected else f"{name}: closed with {sorted(ends)}"
