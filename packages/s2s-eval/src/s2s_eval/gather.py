"""Texts from all ranks, so that corpus metrics are computed once, on everything."""

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gather_lists(items: list[T]) -> list[list[T]]:
    """Return every rank's list, in the order of ranks; all ranks get the same. Without a process group: [items].

    Every rank must call it, a rank without items too.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return [items]
    gathered: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, items)
    return gathered
