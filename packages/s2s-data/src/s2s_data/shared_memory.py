"""Memory that a worker process shares with the main one, made ready in one call."""

import ctypes
import sys
from collections.abc import Sequence
from mmap import PAGESIZE

import torch
from torch import Tensor

# Linux 5.14 and later: give the pages now. Older kernels refuse, and give each page when it is first written.
_MADV_POPULATE_WRITE = 23
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def empty_shared(shape: Sequence[int]) -> Tensor:
    """Return a float32 tensor that isn't filled, in shared memory.

    Writing to fresh shared memory stops at each page of 4 KiB; giving all pages at once made a worker that only
    decodes FLAC a tenth faster (benchmarks/loader_vs_nemo.py, two workers).
    """
    num_bytes = 4 * int(torch.Size(shape).numel())
    tensor = torch.empty(0)
    tensor.set_(torch.UntypedStorage._new_shared(num_bytes), 0, tuple(shape))  # type: ignore[call-overload]
    if _libc is not None:
        before = tensor.data_ptr() % PAGESIZE
        address, length = tensor.data_ptr() - before, num_bytes + before
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), _MADV_POPULATE_WRITE)
    return tensor
