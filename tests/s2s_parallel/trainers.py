"""Lightning's Trainer on several forked gloo processes."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import ProcessContext, start_processes


def fit_on_ranks(
    make_trainer_and_fit: Callable[..., Any], folder: Path, *args: object, world_size: int = 2
) -> list[Any]:
    """Call `make_trainer_and_fit(*args)` on each rank; return what each gave, rank 0 first.

    The Trainer it makes needs `accelerator="cpu"` and `devices=world_size`: it finds its processes started, as under
    torchrun. With one process it is as if a user had started the script.
    """
    context = start_fit(make_trainer_and_fit, folder, *args, world_size=world_size)
    while not context.join():
        pass
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world_size)]


def start_fit(
    make_trainer_and_fit: Callable[..., Any], folder: Path, *args: object, world_size: int = 2
) -> ProcessContext:
    """As `fit_on_ranks`, without waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (make_trainer_and_fit, world_size, free_port(), folder, args)
    context: ProcessContext | None = start_processes(
        _on_rank, arguments, nprocs=world_size, join=False, start_method="fork"
    )
    assert context is not None
    return context


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _on_rank(
    rank: int, function: Callable[..., Any], world_size: int, port: int, folder: Path, args: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {
            "TORCHELASTIC_RUN_ID": "test",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
        }
    torch.save(function(*args), folder / f"rank{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
