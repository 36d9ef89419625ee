"""What all captures of CUDA graphs have in common: other threads, and autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def capture(graph: torch.cuda.CUDAGraph, pool: Any = None) -> AbstractContextManager[Any]:
    """Within it what is launched on the GPU goes into `graph`, whose memory is of `pool`, or its own.

    Other threads, such as those that pin batches, may allocate meanwhile.
    """
    return torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast computes in on such a device; None where it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def uncached_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast as it is, but without its cache of cast weights: a graph would go on reading where they lay."""
    dtype = autocast_dtype(device_type)
    return nullcontext() if dtype is None else torch.autocast(device_type, dtype, cache_enabled=False)
