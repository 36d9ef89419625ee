"""When a conversation is held at real time, and the figures of a round of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from s2s_talk.user import Answers, was_sent_away

ON_TIME_FRAMES = 3
ON_TIME_SHARE = 0.99


@dataclass(frozen=True)
class Round:
    """Several users at once."""

    users: list[Answers]
    frames_sent: int  # by each

    @property
    def is_held(self) -> bool:
        """Whether all of them were held at real time."""
        return all(is_held(user, self.frames_sent) for user in self.users)

    def figures(self) -> dict[str, Any]:
        """What is reported."""
        lags_ms = [lag for user in self.users for lag in user.lags_ms()]
        ticks_ms = [frame["tick_ms"] for user in self.users for frame in user.frames]
        return {
            "sessions": len(self.users),
            "held": self.is_held,
            "on_time_share": round(min(on_time_share(user, self.frames_sent) for user in self.users), 4),
            "lag_ms": percentiles(lags_ms),
            "tick_ms": percentiles(ticks_ms),
            "frames_sent": self.frames_sent * len(self.users),
            "late": sum(user.num_late for user in self.users),
            "skipped": sum(user.num_skipped for user in self.users),
            "sent_away": [user.error or str(user.close_code) for user in self.users if was_sent_away(user)],
            "lag_ms_of_each": [percentiles(user.lags_ms()) for user in self.users],
        }


def is_held(user: Answers, frames_sent: int) -> bool:
    """Whether a conversation was held at real time.

    That is: the server didn't end it, and 99 % of the frames that were sent were heard, and answered within three
    frames (240 ms) of being sent. One of the three is for the wait until the clock ticks, one for the spare frame that
    takes up the connection's delays, one for the computation. `latency_s` of the server's first message comes on top,
    less the frame that it counts itself: that is the model's, whatever the load.
    """
    return not was_sent_away(user) and on_time_share(user, frames_sent) >= ON_TIME_SHARE


def on_time_share(user: Answers, frames_sent: int) -> float:
    """The share of the sent frames that were heard, and answered in time."""
    if not user.hello:
        return 0.0
    limit_ms = 1000 * ON_TIME_FRAMES * user.hello["frame_length_s"]
    num_on_time = len([lag for lag in user.lags_ms() if lag <= limit_ms])
    return num_on_time / max(frames_sent, 1)


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 95 and 99 percent, and the largest; nothing of nothing."""
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return {"p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1), "max": round(max(values), 1)}
