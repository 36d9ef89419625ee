"""Speech files in folders: which there are, what their headers say, and their channels.

An id is a file's path inside its folder without the suffix: ``chat/001`` of ``chat/001.wav``. Shapes: ``S`` samples.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from s2s_eval.asr import Samples

SUFFIXES = (".wav", ".flac")
MAX_NAMED = 5
LEFT, RIGHT = 0, 1


@dataclass(frozen=True)
class SpeechFile:
    """A readable file of one or two channels."""

    path: Path
    sample_rate: int
    num_samples: int
    num_channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_samples / self.sample_rate

    def read(self, channel: int) -> Samples:
        """Return one channel [S] as float32; of a mono file its only one. Raises ValueError if it can't be read."""
        try:
            samples, _ = soundfile.read(self.path, dtype="float32", always_2d=True)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"can't read {self.path}: {_reason(error)}") from error
        return np.ascontiguousarray(samples[:, channel if self.num_channels > 1 else 0])


class Track(NamedTuple):
    """One channel of a file."""

    file: SpeechFile
    channel: int

    def read(self) -> Samples:
        """Return the channel's samples [S]."""
        return self.file.read(self.channel)


def find_speech(folder: Path) -> dict[str, Path]:
    """Return the folder's WAV and FLAC files by id, subfolders too. Raises ValueError where two have one id."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        name = file_id(folder, path)
        if name in found:
            raise ValueError(f"{found[name]} and {path.name} are both {name!r}: keep one of them")
        found[name] = path
    return found


def file_id(folder: Path, path: Path) -> str:
    """Return the path inside the folder without its last suffix, with "/" between its parts."""
    return path.relative_to(folder).with_suffix("").as_posix()


def probe(path: Path) -> SpeechFile:
    """Read the file's header. Raises ValueError if it isn't audio or has more than two channels."""
    try:
        info = soundfile.info(path)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"can't read {path}: {_reason(error)}") from error
    if info.channels > 2:
        raise ValueError(
            f"{path} has {info.channels} channels: give 1 (the agent) or 2 (the user left, the agent right)"
        )
    return SpeechFile(path, info.samplerate, info.frames, info.channels)


def sides(file: SpeechFile, agent_channel: int) -> tuple[Track, Track | None]:
    """Return the agent's track and, of a file with two channels, the user's."""
    user = Track(file, LEFT + RIGHT - agent_channel) if file.num_channels > 1 else None
    return Track(file, agent_channel), user


def named(ids: Iterable[str]) -> str:
    """Name the first few ids."""
    ids = sorted(ids)
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(ids[:MAX_NAMED]) + more


def _reason(error: Exception) -> str:
    return str(error).rsplit(": ", 1)[-1].strip() or type(error).__name__
