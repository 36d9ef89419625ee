"""The frames of one user on their way to the model: which of them a tick takes.

All conversations share one clock of 80 ms (hall.py), and a user's audio is never quite on it.
"""

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from s2s_talk.protocol import Code, Format, Limits, Refused


class Waiting(NamedTuple):
    """A frame that has come; S samples."""

    audio_S: NDArray[np.float32]
    came_at_s: float


class Taken(NamedTuple):
    """What a tick takes of a user."""

    frame: Waiting | None  # None: nothing is there, and the model hears silence
    skipped: int  # older frames that will never be heard


class Inbox:
    """The frames of one conversation.

    - A frame that is late is replaced by silence, for the others don't wait. Once it has come, one frame more waits
      here, and takes up the next delay: the inbox finds the delay of its user's connection by itself.
    - What waits keeps its user behind. If more than `spare_frames` wait all through `patience_frames` ticks, they are
      skipped down to that; so are, at once, the oldest beyond `waiting_frames`, as happens where the server is slow.
    - What is skipped is counted and told.
    - A user may be ahead of time by `ahead_frames`, measured by the server's own time; more is refused.

    Attributes:
        last_came_at_s: when the last frame came; before that, when the conversation was opened.
    """

    def __init__(self, form: Format, limits: Limits, now_s: float) -> None:
        self._frame_s, self._limits = form.frame_length_s, limits
        self._opened_at_s = self.last_came_at_s = now_s
        self._waiting: deque[Waiting] = deque()
        self._num_came = 0
        self._left: deque[int] = deque(maxlen=limits.patience_frames)  # how many waited behind each of the last ticks

    def __len__(self) -> int:
        """How many frames wait."""
        return len(self._waiting)

    def put(self, audio_S: NDArray[np.float32], now_s: float) -> None:
        """Take in the user's next frame.

        Raises:
            Refused: it is too far ahead of time.
        """
        self._num_came += 1
        ahead = self._num_came - (now_s - self._opened_at_s) / self._frame_s
        if ahead > self._limits.ahead_frames:
            allowed_s = self._limits.ahead_frames * self._frame_s
            raise Refused(
                Code.TOO_FAST,
                f"audio came more than {allowed_s:g} s ahead of time: send a frame every {1000 * self._frame_s:g} ms",
            )
        self.last_came_at_s = now_s
        self._waiting.append(Waiting(audio_S, now_s))

    def take(self) -> Taken:
        """Take the frame that the model is to hear now."""
        skipped = max(self._num_behind(), len(self._waiting) - 1 - self._limits.waiting_frames, 0)
        for _ in range(skipped):
            self._waiting.popleft()
        if skipped:
            self._left.clear()
        frame = self._waiting.popleft() if self._waiting else None
        self._left.append(len(self._waiting))
        return Taken(frame, skipped)

    def _num_behind(self) -> int:
        """Frames by which the user is behind for no reason."""
        if len(self._left) < self._limits.patience_frames:
            return 0
        return min(self._left) - self._limits.spare_frames
