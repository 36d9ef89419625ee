"""Where a rank's training stream stands, so that a run goes on where it stopped.

The state is small and a restart is quick: it names the window each worker is in, how far each source had been read
where that window starts, and how many of its batches are done.
"""

from dataclasses import dataclass
from typing import Any

from s2s_data.windows import Cursor, WindowPosition


@dataclass(frozen=True)
class WorkerPosition:
    """How far one worker has come."""

    window: WindowPosition
    num_batches: int  # of the window

    def as_lists(self) -> dict[str, Any]:
        """Return it as numbers and lists, which any checkpoint holds."""
        return {
            "num_drawn": self.window.num_drawn,
            "cursors": [list(cursor) for cursor in self.window.cursors],
            "num_batches": self.num_batches,
        }

    @classmethod
    def from_lists(cls, state: dict[str, Any]) -> "WorkerPosition":
        """Undo :meth:`as_lists`."""
        cursors = tuple(Cursor(*cursor) for cursor in state["cursors"])
        return cls(WindowPosition(state["num_drawn"], cursors), state["num_batches"])


@dataclass(frozen=True)
class StreamPosition:
    """How far all workers of a rank have come, and what the order hangs on."""

    seed: int
    seed_config: str  # the keys that gave it
    order: str  # fingerprint of the config and the sources
    dp_world_size: int
    next_worker: int  # batches come from the workers in turn
    workers: tuple[WorkerPosition | None, ...]  # None has not begun

    def as_dict(self) -> dict[str, Any]:
        """Return it as numbers, strings and lists, which any checkpoint holds."""
        workers = [None if worker is None else worker.as_lists() for worker in self.workers]
        return {**self.__dict__, "workers": workers}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "StreamPosition":
        """Undo :meth:`as_dict`."""
        workers = tuple(None if worker is None else WorkerPosition.from_lists(worker) for worker in state["workers"])
        return cls(**{**state, "workers": workers})
