"""Where a training step's time goes, of either model, by torch's profiler."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.side import Side
from benchmarks.timing import synchronize
from s2s_train.profile_ranges import PREFIX, STEPS
from s2s_train.profile_trace import read_trace


def parts_of_step(side: Side, batch: dict[str, Any], num_steps: int = 3) -> dict[str, Any]:
    """Milliseconds of a step by part; each instant is one part's, and they sum to `step_ms`.

    The profiler slows the host down, so the step is longer than when it is timed.
    """

    def open_range(name: str) -> Any:
        return record_function(PREFIX + name)

    side.step(batch)
    synchronize()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if side.device.type == "cuda" else [])]
    with profile(activities=activities, acc_events=True) as trace, open_range(STEPS), side.marked(open_range):
        for _ in range(num_steps):
            side.step(batch, open_range)
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json.gz"
        trace.export_chrome_trace(str(path))
        times = read_trace(path, num_steps)
    parts = {part: round(ms, 3) for part, ms in times.parts_ms.items() if ms}
    return {"step_ms": round(times.step_ms, 2), "parts_ms": parts}
