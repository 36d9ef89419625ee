"""A live conversation: what a push of 80 ms takes, and whether it or memory grows with time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks.peer_size import FRAME_S, SOURCE_SAMPLES
from benchmarks.timing import free, memory_mib, percentile, synchronize
from s2s_model.dtypes import default_dtype

MINUTE = round(60 / FRAME_S)  # pushes
OUT_OF_THE_WAY = 30  # first pushes that open the windows of encoder and codec


def live_session(model: Any, dtype: torch.dtype, session_s: float, limit_s: float, *, compile: bool) -> dict[str, Any]:
    """Push `session_s` seconds of noise in pieces of a frame; the audio that comes out goes to the host.

    Args:
        model: ours.
        dtype: Lightning's default dtype.
        session_s: seconds of audio.
        limit_s: stop when it has taken so long; `seconds_heard` says how far it came.
    """
    model.eval()
    free()
    num_pushes = round(session_s / FRAME_S)
    minute = min(MINUTE, max(num_pushes // 4, 1))
    frames = torch.randn(50, 1, SOURCE_SAMPLES, generator=torch.Generator().manual_seed(5)) * 0.1
    times_ms: list[float] = []
    memory: dict[str, Any] = {}
    began = time.monotonic()
    with default_dtype(dtype):
        memory["before_opening"] = memory_mib()
        session = model.open_session(batch_size=1, max_duration_s=session_s + 1.0, compile=compile)
        memory["opened"] = memory_mib()
        for i in range(num_pushes):
            pushed = time.perf_counter()
            session.push(frames[i % len(frames)]).audio_BR.cpu()
            times_ms.append((time.perf_counter() - pushed) * 1000)
            if i + 1 == max(minute, OUT_OF_THE_WAY):
                memory["after_first_minute"] = memory_mib()
            if time.monotonic() - began > limit_s:
                break
        synchronize()
        memory["end"] = memory_mib()
    steady = times_ms[min(OUT_OF_THE_WAY, len(times_ms) // 2) :]
    minute = min(minute, len(steady))
    return {
        "seconds_heard": round(len(times_ms) * FRAME_S, 2),
        "first_push_ms": round(times_ms[0], 1),
        "first_minute": _spread(steady[:minute]),
        "last_minute": _spread(steady[-minute:]),
        "memory_mib": memory,
    }


def _spread(times_ms: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(times_ms), 3),
        "p99_ms": round(percentile(times_ms, 0.99), 3),
        "max_ms": round(max(times_ms), 3),
    }
