"""Where the time of a step goes, from the trace of torch's profiler.

Each instant between the first profiled step's start and the last one's end belongs to one part, so the parts add up to
that time. On a CPU an instant belongs to the innermost range open on the main thread, or to communication while a
collective is under way. On a GPU it belongs to the kernel that runs: to the range that was open when the kernel was
launched, or to communication for NCCL's, where no other kernel runs beside them. While no kernel runs, it is data wait
if the host waits for data, else time that the host kept the GPU idle.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from s2s_train.profile_ranges import COMMUNICATION, DATA_WAIT, OTHER, PARTS, PREFIX, STEPS

GPU_IDLE = "GPU idle"
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_COLLECTIVES = ("gloo:", "nccl:", "c10d::")


class Span(NamedTuple):
    """What a part has of the time, microseconds."""

    start: float
    end: float
    part: str


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of a step by part, the mean of those profiled; they sum to `step_ms`."""

    num_steps: int
    step_ms: float
    parts_ms: dict[str, float]
    hidden_communication_ms: float  # beside computing; within the other parts' times
    on_gpu: bool


def read_trace(path: Path, num_steps: int) -> StepTimes:
    """Return the times of `num_steps` steps of a gzipped Chrome trace."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        events = [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]
    whole = next(e for e in events if e["name"] == PREFIX + STEPS and e.get("cat") == "user_annotation")
    start, end = whole["ts"], whole["ts"] + whole["dur"]
    host = host_spans(events, whole["tid"], start, end)
    kernels = _kernels(events, host, start, end)
    if kernels:
        spent, hidden = _on_gpu(kernels, host)
    else:
        spent, hidden = _on_cpu(host, _collectives(events, start, end)), 0.0
    scale = 1e-3 / num_steps
    order = [*PARTS, GPU_IDLE] if kernels else list(PARTS)
    return StepTimes(
        num_steps, (end - start) * scale, {part: spent[part] * scale for part in order}, hidden * scale, bool(kernels)
    )


def host_spans(events: Iterable[dict[str, Any]], thread: Any, start: float, end: float) -> list[Span]:
    """The main thread's time from `start` to `end` by the innermost range, without gaps."""
    names = {PREFIX + part: part for part in PARTS}
    ranges = [
        Span(max(e["ts"], start), min(e["ts"] + e["dur"], end), names[e["name"]])
        for e in events
        if e["name"] in names and e.get("cat") == "user_annotation" and e["tid"] == thread
    ]
    spans: list[Span] = []
    now, stack = start, [Span(start, end, OTHER)]

    def until(time: float) -> None:
        nonlocal now
        while time > now:
            inner = stack[-1]
            stop = min(time, inner.end)
            if stop > now:
                spans.append(Span(now, stop, inner.part))
                now = stop
            if now >= inner.end and len(stack) > 1:
                stack.pop()

    for each in sorted(ranges, key=lambda span: (span.start, -span.end)):
        if each.end > each.start:
            until(each.start)
            while len(stack) > 1 and stack[-1].end <= each.start:
                stack.pop()
            stack.append(each)
    until(end)
    return spans


def _kernels(events: Sequence[dict[str, Any]], host: Sequence[Span], start: float, end: float) -> list[Span]:
    """Kernels by the part that launched them; backward's come from a thread of its own, so time alone decides."""
    launched = {
        e["args"]["correlation"]: e["ts"]
        for e in events
        if e.get("cat") in _LAUNCHES and "correlation" in e.get("args", {})
    }
    starts = [span.start for span in host]
    kernels = []
    for e in events:
        if e.get("cat") in _ON_GPU and e["ts"] < end and e["ts"] + e["dur"] > start:
            part = OTHER
            launch = launched.get(e["args"].get("correlation"))
            if "nccl" in e["name"].lower():
                part = COMMUNICATION
            elif launch is not None and launch >= start:
                part = host[max(bisect_right(starts, launch) - 1, 0)].part
            kernels.append(Span(max(e["ts"], start), min(e["ts"] + e["dur"], end), part))
    return kernels


def _on_gpu(kernels: Sequence[Span], host: Sequence[Span]) -> tuple[dict[str, float], float]:
    """Microseconds by part; and of communication beside computing."""
    # A host span counts where no kernel runs.
    idle = [Span(s.start, s.end, DATA_WAIT if s.part == DATA_WAIT else GPU_IDLE) for s in host]
    order = [*(part for part in PARTS if part != COMMUNICATION), COMMUNICATION]
    spent: defaultdict[str, float] = defaultdict(float)
    hidden = 0.0
    for length, running, waiting in _sweep(kernels, idle):
        part = next((part for part in order if part in running), None) or next(iter(waiting))
        spent[part] += length
        hidden += length if COMMUNICATION in running and part != COMMUNICATION else 0.0
    return spent, hidden


def _on_cpu(host: Sequence[Span], collectives: Sequence[Span]) -> dict[str, float]:
    spent: defaultdict[str, float] = defaultdict(float)
    for length, communicating, parts in _sweep(collectives, host):
        spent[COMMUNICATION if communicating else next(iter(parts))] += length
    return spent


def _collectives(events: Iterable[dict[str, Any]], start: float, end: float) -> list[Span]:
    return [
        Span(max(e["ts"], start), min(e["ts"] + e["dur"], end), COMMUNICATION)
        for e in events
        if e["name"].startswith(_COLLECTIVES) and e["ts"] < end and e["ts"] + e["dur"] > start
    ]


def _sweep(first: Sequence[Span], second: Sequence[Span]) -> Iterable[tuple[float, Counter[str], Counter[str]]]:
    """Yield each stretch of time that `second` covers in which nothing changes, with the parts open in both."""
    changes = sorted(
        (time, which, span.part, change)
        for which, spans in enumerate((first, second))
        for span in spans
        for time, change in ((span.start, 1), (span.end, -1))
    )
    opened: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for (time, which, part, change), (later, *_) in pairwise([*changes, (changes[-1][0], 0, "", 0)]):
        opened[which][part] += change
        if not opened[which][part]:
            del opened[which][part]
        if later > time and opened[1]:
            yield later - time, opened[0], opened[1]
