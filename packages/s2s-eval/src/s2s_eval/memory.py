"""Giving a scoring model's memory back, and deciding whether host memory has room for it."""

import gc
import traceback

import psutil
import torch

GIB = 2**30
MIN_SPARE_BYTES = 4 * GIB
MIN_SPARE_SHARE = 0.1


def free_memory() -> None:
    """Collect what is no longer referenced and return CUDA's cached blocks to the driver."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def forget_frames(error: BaseException, outer: BaseException | None = None) -> None:
    """Drop the local variables that the error's traceback keeps alive; its lines stay readable.

    An error raised inside a model holds every activation of the frames it went through for as long as somebody holds
    the error, and on its way up somebody does. The errors it came from are treated too, up to ``outer``, the one that
    was being handled before the model ran.
    """
    seen: set[int] = {id(outer)}
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        traceback.clear_frames(current.__traceback__)
        pending += [current.__cause__, current.__context__]


def host_memory_after(extra_bytes: int) -> tuple[bool, int]:
    """Return whether host memory stays roomy with ``extra_bytes`` more in it, and the bytes then available.

    Roomy: at least 4 GiB and a tenth of the machine's memory stay available.
    """
    memory = psutil.virtual_memory()
    left = memory.available - extra_bytes
    return left >= max(MIN_SPARE_BYTES, MIN_SPARE_SHARE * memory.total), left
