"""A user who is a program: sends a recording in real time and notes what comes back when.

Shapes: `N` frames, `S` samples of a frame.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np
from numpy.typing import NDArray

from s2s_talk.protocol import PATH, VERSION, Code

GOODBYE_S = 5.0  # how long answers may still come after the last frame was sent

Audio = Callable[[int, int], NDArray[np.int16]]  # sample rate, samples of a frame -> frames [N, S]


@dataclass
class Answers:
    """What one user got."""

    hello: dict[str, Any] = field(default_factory=dict)
    frames: list[dict[str, Any]] = field(default_factory=list)  # the server's messages
    audio: list[bytes] = field(default_factory=list)  # 16-bit PCM of each
    sent_at_s: list[float] = field(default_factory=list)  # of the user's frames
    came_at_s: list[float] = field(default_factory=list)  # of the agent's
    notices: list[str] = field(default_factory=list)
    error: str = ""
    close_code: int | None = None

    def lags_ms(self) -> list[float]:
        """From sending a frame to its answer, for each frame that was heard."""
        lags, position = [], 0
        for frame, came_at_s in zip(self.frames, self.came_at_s, strict=False):
            position += frame["skipped"]
            if frame["heard"]:
                lags.append(1000 * (came_at_s - self.sent_at_s[position]))
                position += 1
        return lags

    @property
    def num_skipped(self) -> int:
        """Frames of the user that the server skipped."""
        return sum(frame["skipped"] for frame in self.frames)

    @property
    def num_late(self) -> int:
        """Frames of silence that the model heard, because the user's were late."""
        return sum(not frame["heard"] for frame in self.frames)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A WebSocket to the server at `url`.

    Raises:
        ValueError: the address is none, or no talk page is there.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"{url!r} is no address of a talk page: give http://localhost:8765/, as talk:serve printed it")
    origin = f"{parts.scheme}://{parts.netloc}"
    async with aiohttp.ClientSession() as http:
        try:
            ws = await http.ws_connect(origin + PATH, headers={"Origin": origin})
        except aiohttp.ClientError as error:
            raise ValueError(f"no talk page at {url}: {error}. Is hatch run talk:serve running there?") from error
        async with ws:
            yield ws


async def talk(url: str, audio: Audio) -> Answers:
    """Send a recording frame by frame, each when it is due, and stop when all is answered.

    Raises:
        ValueError: as `connected`, or the server speaks another version of the protocol.
    """
    answers = Answers()
    async with connected(url) as ws:
        await _listen_until(ws, answers, lambda: bool(answers.hello or answers.error))
        if answers.error:
            return answers
        hello = answers.hello
        if not hello:
            raise ValueError(f"{url} didn't greet: is hatch run talk:serve running there?")
        if hello["version"] != VERSION:
            raise ValueError(
                f"{url} speaks version {hello['version']} of the protocol, not {VERSION}: use its own s2s_talk"
            )
        frames_NS = audio(hello["source_sample_rate_hz"], hello["source_samples_per_frame"])
        sending = asyncio.create_task(_send(ws, frames_NS, hello["frame_length_s"], answers))
        await _listen_until(ws, answers, lambda: _all_answered(answers, len(frames_NS)), sending)
        await sending
        if not ws.closed:
            await ws.send_str('{"type": "stop"}')
            await _listen_until(ws, answers, lambda: False)
    return answers


def _all_answered(answers: Answers, num_frames: int) -> bool:
    return len(answers.audio) - answers.num_late + answers.num_skipped >= num_frames


async def _send(
    ws: aiohttp.ClientWebSocketResponse, frames_NS: NDArray[np.int16], frame_length_s: float, answers: Answers
) -> None:
    began_s = time.monotonic()
    for number, frame_S in enumerate(frames_NS, 1):
        await asyncio.sleep(began_s + number * frame_length_s - time.monotonic())  # a frame is there at its end
        if ws.closed:
            return
        answers.sent_at_s.append(time.monotonic())
        try:
            await ws.send_bytes(frame_S.astype("<i2").tobytes())
        except (ConnectionError, aiohttp.ClientError):
            return  # what the server said about it is still to be read


async def _listen_until(
    ws: aiohttp.ClientWebSocketResponse,
    answers: Answers,
    is_enough: Callable[[], bool],
    sending: "asyncio.Task[None] | None" = None,
) -> None:
    """Take in messages until it is enough, the server closes, or nothing comes any more."""
    while not is_enough():
        patience_s = None if sending is not None and not sending.done() else GOODBYE_S
        try:
            message = await ws.receive(patience_s)
        except TimeoutError:
            return
        if message.type is aiohttp.WSMsgType.BINARY:
            answers.audio.append(message.data)
            answers.came_at_s.append(time.monotonic())
        elif message.type is aiohttp.WSMsgType.TEXT:
            _take(answers, json.loads(message.data))
        else:
            answers.close_code = ws.close_code
            return


def _take(answers: Answers, message: dict[str, Any]) -> None:
    match message["type"]:
        case "hello":
            answers.hello = message
        case "frame":
            answers.frames.append(message)
        case "notice":
            answers.notices.append(message["text"])
        case "error":
            answers.error = message["text"]


def was_sent_away(answers: Answers) -> bool:
    """Whether the server ended the conversation, and not the user."""
    return bool(answers.error) or answers.close_code not in (None, Code.DONE)
