"""How much memory a step may take, how much it took, and which errors say that it was too much."""

from __future__ import annotations

import ctypes
import gc
import resource
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")

GIB = 2**30
HOST_SLACK_BYTES = 4 * GIB  # of address space, most of which is never used
PARALLEL = 2**20  # elements; torch splits what is larger than 2**15 among its threads

# What CUDA, its libraries, the CPU's allocator and oneDNN say; the last is a batch that kernels can't number.
_TOO_LARGE = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "_status_alloc_failed",
    "failed to cuda calloc",
    "could not create a primitive",
    "could not create a memory",
    "canuse32bitindexmath",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or one that led to it, says that a batch was too large for the device."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _TOO_LARGE):
            return True
        error = error.__cause__ or error.__context__
    return False


class Memory(ABC):
    """The memory of this process's device."""

    limit_bytes: int  # what a step may take
    refuses_cleanly: bool  # whether a step beyond the limit can be counted on to end in an error that is caught

    @abstractmethod
    def run_limited(self, step: Callable[[], T]) -> T:
        """Return what `step` returns; where it goes beyond the limit, an error is raised."""

    @abstractmethod
    def reset(self) -> None:
        """Free what is cached, and begin a new peak."""

    @abstractmethod
    def peak_bytes(self) -> int:
        """The most that was held since `reset`."""


class CudaMemory(Memory):
    """A GPU's, as torch's allocator holds it.

    Args:
        device: the GPU.
        share: of the memory that is free for this process.
        limit_gib: in place of the share.
    """

    refuses_cleanly = True

    def __init__(self, device: torch.device, share: float, limit_gib: float | None) -> None:
        self._device = device
        free, self._total = torch.cuda.mem_get_info(device)
        available = free + torch.cuda.memory_reserved(device)
        self.limit_bytes = int(share * available if limit_gib is None else min(limit_gib * GIB, available))

    def run_limited(self, step: Callable[[], T]) -> T:
        """Let the allocator refuse what goes beyond the limit."""
        torch.cuda.set_per_process_memory_fraction(self.limit_bytes / self._total, self._device)
        try:
            return step()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self._device)

    def reset(self) -> None:
        """Return cached memory to the device."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """What the allocator had of the device, gaps included."""
        return torch.cuda.max_memory_reserved(self._device)


class HostMemory(Memory):
    """This process's part of the host's memory, by Linux's own count.

    Args:
        limit_gib: resident memory, of which weights and libraries take a part.

    Raises:
        ValueError: no limit is given, or more is taken already.
    """

    refuses_cleanly = False  # some of C++ aborts where it gets no memory

    def __init__(self, limit_gib: float | None) -> None:
        if limit_gib is None:
            raise ValueError(
                "on a CPU no batch fails before the machine does: give --memory-gib N, what this process may take"
            )
        self.limit_bytes = int(limit_gib * GIB)
        taken = _status_bytes("VmRSS")
        if taken >= self.limit_bytes:
            raise ValueError(
                f"--memory-gib is {limit_gib:g}, but the model and its libraries take {taken / GIB:.2f} GiB already"
            )

    def run_limited(self, step: Callable[[], T]) -> T:
        """Let Linux refuse address space far beyond the limit: it is what protects the machine, not what decides.

        The step has a thread of its own. oneDNN's code generator keeps the first error that a thread met for as long
        as it lives, and each later layer of that thread fails of it ("could not create a primitive").
        """
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(self._run_limited, step).result()

    def _run_limited(self, step: Callable[[], T]) -> T:
        torch.ones(PARALLEL).sum()  # starts the thread's OpenMP workers, which abort the process where they can't start
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        room = self.limit_bytes - _status_bytes("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + max(room, 0) + HOST_SLACK_BYTES, hard))
        try:
            return step()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    def reset(self) -> None:
        """Begin a new peak of resident memory."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_bytes(self) -> int:
        """The peak of resident memory."""
        return _status_bytes("VmHWM")


def memory_of(device: torch.device, share: float, limit_gib: float | None) -> Memory:
    """Return the memory of `device`.

    Raises:
        ValueError: see `HostMemory`; or a device that isn't known.
    """
    if device.type == "cuda":
        return CudaMemory(device, share, limit_gib)
    if device.type == "cpu":
        return HostMemory(limit_gib)
    raise ValueError(f"trainer.accelerator: there is no calibrating on {device.type}, use gpu or cpu")


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: calibrating on a CPU needs Linux")
