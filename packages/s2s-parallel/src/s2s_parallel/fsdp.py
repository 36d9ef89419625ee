"""FSDP2 by block: each block gathers its own weights, so only one block is whole at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from s2s_parallel.mesh import DATA_PARALLEL, TENSOR_PARALLEL


def mixed_precision(
    param_dtype: torch.dtype | None = torch.bfloat16, reduce_dtype: torch.dtype | None = torch.float32
) -> MixedPrecisionPolicy:
    """Compute in `param_dtype`, reduce gradients in `reduce_dtype`; master weights keep their own dtype."""
    return MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)


def shard_blocks(
    module: nn.Module,
    blocks: Iterable[nn.Module],
    mesh: DeviceMesh,
    *,
    policy: MixedPrecisionPolicy | None = None,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Shard each of `blocks` over the data parallel axis, then the rest of `module` as one unit.

    Parameters become DTensors with placement Shard(0) over `data_parallel`. A parameter that `module` owns
    outside every block is whole only inside `module.forward`: something called from elsewhere (an embedding
    read in `training_step`, say) has to be one of the blocks.

    Args:
        module: changed in place and returned. Its weights must be the same on every process.
        blocks: submodules of `module` that are called as modules, most often the transformer layers. A block
            inside another one comes before it.
        mesh: a mesh with the axis `data_parallel` (Lightning's `device_mesh`, or `mesh.build_mesh`).
        policy: dtypes of computation and gradient reduction; None computes in the weights' own dtype. What `module`
            itself is called with isn't cast: audio stays in float32.
        reshard_after_forward: free a block's gathered weights after its forward (less memory, gathered again
            in backward).

    Raises:
        ValueError: no blocks, a block that isn't inside `module`, or a mesh with a tensor parallel axis > 1.
    """
    blocks = list(blocks)
    _check(module, blocks, mesh)
    mesh_dp = mesh[DATA_PARALLEL]
    policy = policy or MixedPrecisionPolicy()
    for block in blocks:
        fully_shard(block, mesh=mesh_dp, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    outermost = replace(policy, cast_forward_inputs=False)
    fully_shard(module, mesh=mesh_dp, mp_policy=outermost, reshard_after_forward=reshard_after_forward)
    return module


def _check(module: nn.Module, blocks: list[nn.Module], mesh: DeviceMesh) -> None:
    if not blocks:
        raise ValueError("shard_blocks got no blocks: pass the repeated layers, for instance model.layers")
    inside = {id(child) for child in module.modules()} - {id(module)}
    for index, block in enumerate(blocks):
        if id(block) not in inside:
            raise ValueError(
                f"block {index} ({type(block).__name__}) isn't a submodule of {type(module).__name__}: pass its layers"
            )
    names = mesh.mesh_dim_names or ()
    if DATA_PARALLEL not in names:
        raise ValueError(f"the mesh's axes are {names}, without {DATA_PARALLEL!r}: make it with build_mesh")
    if TENSOR_PARALLEL in names and mesh[TENSOR_PARALLEL].size() > 1:
        raise ValueError(
            f"the mesh's {TENSOR_PARALLEL} axis has {mesh[TENSOR_PARALLEL].size()} processes:"
            " tensor parallelism isn't supported yet, use 1"
        )
