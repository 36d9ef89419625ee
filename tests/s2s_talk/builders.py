"""A small model that talks, a server of it on a port of its own, and clients."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch

from s2s_talk.protocol import Limits
from s2s_talk.server import serving
from s2s_talk.talker import Talker
from tests.s2s_model import builders

FRAME = 1280
PATIENT = Limits(max_sessions=2, max_duration_s=20.0, spare_frames=1000, waiting_frames=1000, ahead_frames=1000)


def make_model(folder: Path) -> Any:
    """Random weights, but each part is real, and what it says depends on what it hears and said before."""
    from s2s_model import DuplexS2SModel

    torch.manual_seed(0)
    llm, codec = builders.make_llm(folder / "llm"), builders.make_codec(folder / "codec.nemo")
    model = DuplexS2SModel(builders.model_config(llm, codec, predict_user_text=True)).eval()
    with torch.no_grad():
        for weight in model.llm.parameters():
            if weight.ndim == 2:
                weight.mul_(30)  # at usual random weights one token wins in all frames
        head = model.llm.lm_head.weight
        head[builders.BOS] = head[62]  # the token that wins at first: now it opens a turn, and what follows is text
        model.asr_head.weight.copy_(head)
    return model


def noise(num_frames: int, seed: int = 0) -> np.ndarray:
    """User audio [frames, S] as 16-bit integers, some frames loud and most not."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(0, 0.3, (num_frames, FRAME)) * generator.random((num_frames, 1)) ** 3
    return np.clip(32768 * audio, -32768, 32767).astype("<i2")


@contextmanager
def server(talker: Talker, limits: Limits = PATIENT) -> Iterator[str]:
    """Serve on loopback, in a thread with an event loop; give the address."""
    talker.clear()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with ThreadPoolExecutor(max_workers=1) as worker:
        running = serving(talker, limits, worker, host="127.0.0.1", port=0)
        address, _ = asyncio.run_coroutine_threadsafe(running.__aenter__(), loop).result(60)
        try:
            yield address
        finally:
            asyncio.run_coroutine_threadsafe(running.__aexit__(None, None, None), loop).result(60)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


class Client:
    """A user; what came back lies in `frames`, `audio`, `notices`, `error` and `close_code`."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.hello: dict[str, Any] = {}
        self.frames: list[dict[str, Any]] = []
        self.audio: list[np.ndarray] = []
        self.notices: list[dict[str, Any]] = []
        self.error: dict[str, Any] = {}

    async def send(self, frames: np.ndarray) -> None:
        """Send frames at once."""
        for frame in frames:
            await self.ws.send_bytes(frame.tobytes())

    async def read(self, num_frames: int = 10**9) -> None:
        """Read until so many frames have come in all, with their audio, or the server closes."""
        while len(self.audio) < num_frames:
            message = await asyncio.wait_for(self.ws.receive(), 60)
            if message.type is aiohttp.WSMsgType.BINARY:
                self.audio.append(np.frombuffer(message.data, "<i2"))
            elif message.type is aiohttp.WSMsgType.TEXT:
                self._sort(message.json())
            else:
                return

    def _sort(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "hello":
                self.hello = message
            case "frame":
                self.frames.append(message)
            case "notice":
                self.notices.append(message)
            case _:
                self.error = message


@asynccontextmanager
async def client(address: str, **headers: str) -> AsyncIterator[Client]:
    """Connect as the server's own page does."""
    given = {"Origin": address.rstrip("/"), **headers}
    async with aiohttp.ClientSession() as http, http.ws_connect(address + "talk", headers=given) as ws:
        yield Client(ws)


def alone(model: Any, said: np.ndarray, frames: list[dict[str, Any]]) -> tuple[list[int], np.ndarray, str, str]:
    """What a session of its own gives to the same audio: tokens, 16-bit audio, text, user text.

    Silence stands where `frames` tell that the user's frame was late.
    """
    session = model.open_session()
    tokens, audio, text, user_text, position = [], [], "", "", 0
    for frame in frames:
        assert frame["skipped"] == 0
        heard = said[position] if frame["heard"] else np.zeros(FRAME, "<i2")
        position += frame["heard"]
        output = session.push(torch.from_numpy(heard.astype(np.float32) / 32768)[None])
        tokens += output.tokens_BN[0].tolist()
        audio.append(output.audio_BR[0].numpy())
        text, user_text = text + output.text[0], user_text + output.user_text[0]
    return tokens, np.rint(np.concatenate(audio) * 32768), text, user_text
