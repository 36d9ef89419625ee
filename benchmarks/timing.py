"""Clocks and memory of GPU benchmarks."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from s2s_parallel.gpus import peak_bytes

GIB, MIB = 2**30, 2**20


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of a call, the device idle at both ends."""
    synchronize()
    began = time.perf_counter()
    call()
    synchronize()
    return (time.perf_counter() - began) * 1000


def free() -> None:
    """Give back what nothing refers to, and start to look for the peak anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    forget_peak()


def forget_peak() -> None:
    """Start to look for the most memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    """The most that tensors took since `forget_peak`, what CUDA graphs keep included."""
    return round(peak_bytes() / GIB, 2) if torch.cuda.is_available() else None


def memory_mib() -> dict[str, float] | None:
    """What tensors take now, and what torch has reserved for them."""
    if not torch.cuda.is_available():
        return None
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return {"allocated": round(allocated / MIB, 1), "reserved": round(reserved / MIB, 1)}


@contextmanager
def exact_float32() -> Iterator[None]:
    """No TF32: float32 products are exact to their last bits."""
    precision, conv = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = conv


def summary(times_ms: Sequence[float]) -> dict[str, float]:
    """Median and minimum."""
    return {"ms": round(statistics.median(times_ms), 3), "min_ms": round(min(times_ms), 3)}


def percentile(times_ms: Sequence[float], share: float) -> float:
    """The time that `share` of the times don't exceed."""
    return sorted(times_ms)[min(len(times_ms) - 1, int(share * len(times_ms)))]
