"""What page and server say to each other; README.md tells the same in words.

Audio is PCM of 16 bits, little endian, mono, one frame (80 ms) a message: integers can't be NaN or infinite, so no
sender can bring that to the model. Everything else is JSON.

Shapes: `S` samples of user audio, `R` samples of agent audio.
"""

import json
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERSION = 1
PATH = "/talk"
FULL_SCALE = 32768.0
LONGEST_TEXT = 200  # characters of a message that is no audio


class Code(IntEnum):
    """Close codes of the WebSocket; those from 4000 on are ours."""

    DONE = 1000  # the user ended the conversation
    GOING_AWAY = 1001  # the server is being stopped
    TOO_LARGE = 1009  # a message larger than any that means something
    OVER = 4000  # the conversation is as long as it may be
    RUBBISH = 4400  # a message that means nothing
    IDLE = 4408  # no audio for a while
    TOO_FAST = 4429  # more audio than time has passed
    DEFECT = 4500  # the server failed
    FULL = 4503  # all places are taken
    SLOW = 4508  # answers aren't read


class Refused(Exception):  # noqa: N818  most are no errors of ours
    """Ends one conversation; the text tells its user what is wrong and what to do."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


@dataclass(frozen=True)
class Format:
    """What audio looks like in both directions."""

    source_sample_rate_hz: int
    source_samples_per_frame: int  # S
    target_sample_rate_hz: int
    target_samples_per_frame: int  # R
    frame_length_s: float


@dataclass(frozen=True)
class Limits:
    """What a conversation may take; the first two can be set by flags."""

    max_sessions: int = 2  # conversations at once
    max_duration_s: float = 300.0  # of one conversation
    ending_notice_s: float = 15.0  # how long before its end the user is told
    idle_s: float = 10.0  # without audio from the user
    heartbeat_s: float = 10.0  # between pings; half as long for the answer
    ahead_frames: int = 25  # audio that may come before its time
    waiting_frames: int = 12  # frames that may wait to be heard; the oldest beyond are skipped, and that is told
    spare_frames: int = 2  # frames that may wait for good, against a connection that stutters
    patience_frames: int = 25  # ticks in which more than those have waited all along: then they are skipped
    unread_frames: int = 50  # answers that may wait for a user who doesn't read


def hello(form: Format, limits: Limits, latency_s: float, writes_user_text: bool) -> dict[str, Any]:
    """The server's first message."""
    return {
        "type": "hello",
        "version": VERSION,
        **asdict(form),
        "latency_s": round(latency_s, 3),
        "writes_user_text": writes_user_text,
        "max_duration_s": limits.max_duration_s,
        "idle_s": limits.idle_s,
        "ahead_frames": limits.ahead_frames,
        "max_sessions": limits.max_sessions,
    }


def error(refused: Refused) -> dict[str, Any]:
    """The server's last message, unless the user ended the conversation."""
    return {"type": "error", "code": int(refused.code), "text": refused.text}


def frame_of_bytes(data: bytes, form: Format) -> NDArray[np.float32]:
    """A user's frame [S], from -1 to 1.

    Raises:
        Refused: the message isn't one frame of audio.
    """
    wanted = 2 * form.source_samples_per_frame
    if len(data) != wanted:
        raise Refused(
            Code.RUBBISH,
            f"a binary message has {len(data)} bytes: send {wanted}, a frame of 16-bit samples at "
            f"{form.source_sample_rate_hz} Hz",
        )
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / np.float32(FULL_SCALE)


def bytes_of_frame(audio_R: NDArray[np.float32]) -> bytes:
    """Floats from -1 to 1 as 16-bit PCM; what is louder is clipped."""
    pcm: bytes = np.clip(np.rint(audio_R * FULL_SCALE), -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()
    return pcm


def check_stop(text: str) -> None:
    """Check a text message of the user: there is one that means something, `{"type": "stop"}`.

    Raises:
        Refused: it is another.
    """
    if len(text) > LONGEST_TEXT:
        raise Refused(Code.RUBBISH, f"a text message has {len(text)} characters: audio is sent in binary messages")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise Refused(
            Code.RUBBISH, 'a text message isn\'t JSON: send {"type": "stop"}, or audio in a binary message'
        ) from cause
    if not isinstance(message, dict) or message.get("type") != "stop":
        raise Refused(
            Code.RUBBISH, 'a text message has no meaning here: send {"type": "stop"}, or audio in a binary message'
        )
