"""Runs a function on several forked gloo processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.multiprocessing.spawn import start_processes


def run_on_ranks(function: Callable[..., Any], folder: Path, *args: object, world_size: int = 2) -> list[Any]:
    """Call `function(rank, *args)` on each rank; return what each gave.

    Forked, since importing torch and NeMo anew in each process would take longer than the test.
    """
    meeting = folder / f"rendezvous-{uuid4().hex}"  # its own: a file of earlier processes holds their old ports
    start_processes(_on_rank, (function, world_size, folder, meeting, args), nprocs=world_size, start_method="fork")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def _on_rank(
    rank: int, function: Callable[..., Any], world_size: int, folder: Path, meeting: Path, args: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size)
    torch.save(function(rank, *args), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
