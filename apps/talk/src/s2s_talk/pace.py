"""Whether the server keeps up: how long its ticks take, and when that has to be told."""

from collections import deque
from typing import Any

NUM_TICKS = 25  # that are averaged: 2 s
TOLD_EVERY_S = 5.0


class Pace:
    """How long the last ticks took."""

    def __init__(self, frame_length_s: float) -> None:
        self._frame_s = frame_length_s
        self._took_s: deque[float] = deque(maxlen=NUM_TICKS)
        self._told_at_s = float("-inf")

    def took(self, tick_s: float) -> None:
        """Count a tick."""
        self._took_s.append(tick_s)

    @property
    def mean_s(self) -> float:
        """Seconds of a tick, on average."""
        return sum(self._took_s) / max(len(self._took_s), 1)

    def warning(self, now_s: float, num_talking: int) -> dict[str, Any] | None:
        """What users are told if the server is too slow, and it is time to say so."""
        too_few = len(self._took_s) < NUM_TICKS
        if too_few or self.mean_s <= self._frame_s or now_s - self._told_at_s < TOLD_EVERY_S:
            return None
        self._told_at_s = now_s
        text = (
            f"The server is too slow: it needs {1000 * self.mean_s:.0f} ms for {1000 * self._frame_s:.0f} ms of audio, "
            f"with {num_talking} talking. Answers are late, and what you say is skipped in part."
        )
        return {"type": "notice", "kind": "overloaded", "text": text}
