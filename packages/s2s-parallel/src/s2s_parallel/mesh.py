"""How the processes of a run are arranged: data parallel × tensor parallel, checked before anything is built.

The axis names are those of Lightning's ModelParallelStrategy, so its `device_mesh` fits everything here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA_PARALLEL = "data_parallel"
TENSOR_PARALLEL = "tensor_parallel"
AXES = (DATA_PARALLEL, TENSOR_PARALLEL)

# Tensor parallelism isn't supported yet. Raising this is all that the size checks need once it is.
MAX_TENSOR_PARALLEL_SIZE = 1


@dataclass(frozen=True)
class MeshSizes:
    """Processes along each axis; their product is the number of processes."""

    data_parallel_size: int
    tensor_parallel_size: int

    @property
    def world_size(self) -> int:
        """Number of processes in the mesh."""
        return self.data_parallel_size * self.tensor_parallel_size


def sizes_that_work(world_size: int) -> list[MeshSizes]:
    """Every supported mesh of `world_size` processes, the smallest tensor parallel size first."""
    return [
        MeshSizes(world_size // tp, tp)
        for tp in range(1, min(world_size, MAX_TENSOR_PARALLEL_SIZE) + 1)
        if world_size % tp == 0
    ]


def resolve_mesh(
    world_size: int,
    data_parallel_size: int | Literal["auto"] = "auto",
    tensor_parallel_size: int | Literal["auto"] = "auto",
) -> MeshSizes:
    """Turn configured sizes into a mesh of exactly `world_size` processes.

    `"auto"` for `tensor_parallel_size` is 1; for `data_parallel_size` it is whatever remains.

    Raises:
        ValueError: a size is below 1, tensor parallelism is asked for, or the product isn't `world_size`. The
            message quotes the numbers and the sizes that would work.
    """
    tp = 1 if tensor_parallel_size == "auto" else tensor_parallel_size
    for name, size in (("data_parallel_size", data_parallel_size), ("tensor_parallel_size", tp)):
        if size != "auto" and size < 1:
            raise ValueError(f"{name} is {size}: use 1 or more (1 disables the axis), or 'auto'")
    if tp > MAX_TENSOR_PARALLEL_SIZE:
        raise ValueError(
            f"tensor_parallel_size ({tp}) isn't supported yet: set it to {MAX_TENSOR_PARALLEL_SIZE} and"
            f" data_parallel_size to {world_size}, the number of processes (FSDP shards over them)"
        )
    dp = world_size // tp if data_parallel_size == "auto" else data_parallel_size
    if dp * tp != world_size:
        options = " or ".join(
            f"data_parallel_size={fit.data_parallel_size} with tensor_parallel_size={fit.tensor_parallel_size}"
            for fit in sizes_that_work(world_size)
        )
        raise ValueError(
            f"data_parallel_size ({dp}) × tensor_parallel_size ({tp}) is {dp * tp}, but the run has"
            f" {world_size} process{'es' if world_size > 1 else ''} (devices × nodes): use {options}"
        )
    return MeshSizes(dp, tp)


def build_mesh(sizes: MeshSizes, device_type: str) -> DeviceMesh:
    """Lay the initialised process group out as a mesh with the axes `data_parallel`, `tensor_parallel`."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device_type, (sizes.data_parallel_size, sizes.tensor_parallel_size), mesh_dim_names=AXES)
