"""How the processes of a run are arranged: data × context × tensor parallel, checked before anything is built.

The axis names are those of Lightning's ModelParallelStrategy, so its `device_mesh` fits everything here. Data
parallelism itself may have two axes (HSDP): weights are sharded within `shard` and copied along `replicate`. Peers of
context parallelism share the frames of the same dialogues, and the shards of the weights as data parallel processes do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA_PARALLEL = "data_parallel"
CONTEXT_PARALLEL = "context_parallel"
TENSOR_PARALLEL = "tensor_parallel"
REPLICATE = "replicate"
SHARD = "shard"
WEIGHTS = "weights"  # shards and context parallel peers in one

Size = int | Literal["auto"]


@dataclass(frozen=True)
class MeshSizes:
    """Processes along each axis; their product is the number of processes.

    `data_parallel_size` processes read data of their own; the weights have `replicate_size` copies among them.
    """

    data_parallel_size: int
    tensor_parallel_size: int = 1
    replicate_size: int = 1
    context_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        """Number of processes in the mesh."""
        return self.data_parallel_size * self.num_peers

    @property
    def num_peers(self) -> int:
        """Processes that have the same dialogues."""
        return self.context_parallel_size * self.tensor_parallel_size

    @property
    def shard_size(self) -> int:
        """Processes that share one copy of the weights, along data and context parallelism."""
        return self.data_parallel_size // self.replicate_size * self.context_parallel_size


def sizes_that_work(num_processes: int, tensor_parallel_sizes: Iterable[int] | None = None) -> list[MeshSizes]:
    """Every mesh of `num_processes` without copies and context parallelism, the smallest tensor parallel size first.

    `tensor_parallel_sizes` are those that a model allows; None: any.
    """
    allowed = range(1, num_processes + 1) if tensor_parallel_sizes is None else sorted(tensor_parallel_sizes)
    return [MeshSizes(num_processes // tp, tp) for tp in allowed if num_processes % tp == 0]


def resolve_mesh(
    world_size: int,
    data_parallel_size: Size = "auto",
    tensor_parallel_size: Size = "auto",
    replicate_size: int = 1,
    context_parallel_size: int = 1,
) -> MeshSizes:
    """Turn configured sizes into a mesh of exactly `world_size` processes.

    `"auto"` for `tensor_parallel_size` is 1; for `data_parallel_size` it is whatever remains.

    Raises:
        ValueError: a size is below 1, the product isn't `world_size`, or `replicate_size` doesn't divide
            `data_parallel_size`. The message quotes the numbers and the sizes that would work.
    """
    tp = 1 if tensor_parallel_size == "auto" else tensor_parallel_size
    named = {
        "data_parallel_size": data_parallel_size,
        "tensor_parallel_size": tp,
        "replicate_size": replicate_size,
        "context_parallel_size": context_parallel_size,
    }
    for name, size in named.items():
        may_be_auto = name in ("data_parallel_size", "tensor_parallel_size")
        if may_be_auto and size == "auto":
            continue
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            hint = ", or 'auto'" if may_be_auto else ""
            raise ValueError(f"{name} is {size}: use 1 or more (1 disables the axis){hint}")
    cp = context_parallel_size
    if world_size % cp:
        raise ValueError(
            f"context_parallel_size ({cp}) must divide the run's {_processes(world_size)} (devices × nodes): use"
            f" {join_sizes(divisors(world_size))}"
        )
    dp = max(world_size // (cp * tp), 1) if data_parallel_size == "auto" else data_parallel_size
    if dp * cp * tp != world_size:
        options = " or ".join(
            f"data_parallel_size={fit.data_parallel_size} with tensor_parallel_size={fit.tensor_parallel_size}"
            for fit in sizes_that_work(world_size // cp)
        )
        contexts = f" × context_parallel_size ({cp})" if cp > 1 else ""
        raise ValueError(
            f"data_parallel_size ({dp}){contexts} × tensor_parallel_size ({tp}) is {dp * cp * tp}, but the run has"
            f" {_processes(world_size)} (devices × nodes): use {options}"
        )
    if dp % replicate_size:
        raise ValueError(
            f"replicate_size ({replicate_size}) must divide data_parallel_size ({dp}): use {join_sizes(divisors(dp))}"
        )
    return MeshSizes(dp, tp, replicate_size, cp)


def _processes(number: int) -> str:
    return f"{number} process{'es' if number > 1 else ''}"


def divisors(number: int) -> list[int]:
    """What divides `number`, ascending."""
    return [size for size in range(1, number + 1) if number % size == 0]


def join_sizes(sizes: Iterable[int]) -> str:
    """Sizes as a message lists them: "1, 2 or 4"."""
    words = [str(size) for size in sizes]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def build_mesh(sizes: MeshSizes, device_type: str) -> DeviceMesh:
    """Lay the initialised process group out as a mesh, tensor parallel peers next to each other.

    Its axes are `data_parallel`, `context_parallel` if there is any, and `tensor_parallel`; with copies of the weights
    `replicate` and `shard` stand for the first, and `data_parallel` is the two in one. Every process has to call it.
    """
    from torch.distributed.device_mesh import init_device_mesh

    copies, cp = sizes.replicate_size, sizes.context_parallel_size
    axes = {REPLICATE: copies, SHARD: sizes.data_parallel_size // copies}
    axes = axes if copies > 1 else {DATA_PARALLEL: sizes.data_parallel_size}
    axes |= {CONTEXT_PARALLEL: cp} if cp > 1 else {}
    axes |= {TENSOR_PARALLEL: sizes.tensor_parallel_size}
    mesh = init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))
    if copies > 1:
        mesh[REPLICATE, SHARD]._flatten(DATA_PARALLEL)
    if cp > 1:
        mesh[SHARD if copies > 1 else DATA_PARALLEL, CONTEXT_PARALLEL]._flatten(WEIGHTS)
    return mesh
