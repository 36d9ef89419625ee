"""A dialogue as the import reads it. Shapes: ``S`` samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from s2s_data.batch import Turn
from s2s_data.errors import DataError

FloatArray = npt.NDArray[np.float32]


class DialogueError(DataError):
    """A dialogue that can't be used; ``kind`` says in a few words why, for the summary's counts."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type["DialogueError"], tuple[str, str]]:
        return DialogueError, (self.kind, str(self))  # a worker's error comes back pickled


@dataclass(frozen=True)
class Item:
    """A dialogue to be imported."""

    dialogue_id: str
    name: str  # for messages: a file, or a manifest's line
    row: Mapping[str, Any]  # what its reader needs


class Channel(NamedTuple):
    """One side's audio."""

    samples_S: FloatArray
    rate_hz: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples_S) / self.rate_hz


@dataclass(frozen=True)
class RecordedDialogue:
    """Both sides' audio, of one duration and at the rate of the file, and the turns by their start."""

    user: Channel
    agent: Channel
    turns: tuple[Turn, ...]


class Reader(Protocol):
    """Reads a dialogue. It is pickled for worker processes, so it is a dataclass of plain values."""

    def __call__(self, item: Item) -> RecordedDialogue:
        """Read ``item``; raises :class:`DialogueError`."""
