"""FSDP2 by block: each block gathers its own weights, so only one block is whole at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from s2s_parallel.mesh import CONTEXT_PARALLEL, DATA_PARALLEL, REPLICATE, SHARD, WEIGHTS

Unit = nn.Module | list[nn.Module]  # a list: modules with tied weights, or gathered together
GROUP_SIZE = 2**25  # numbers: 64 MiB in bf16, which a collective moves at full speed
_RESHARDS = "_s2s_reshards_after_forward"  # where `gather` keeps what `release` puts back


def mixed_precision(
    param_dtype: torch.dtype | None = torch.bfloat16, reduce_dtype: torch.dtype | None = torch.float32
) -> MixedPrecisionPolicy:
    """Compute in `param_dtype`, reduce gradients in `reduce_dtype`; master weights keep their own dtype."""
    return MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=reduce_dtype)


def data_parallel_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of a mesh over which weights are sharded (and, with a `replicate` axis, copied).

    Raises:
        ValueError: the mesh has no such axes.
    """
    names = mesh.mesh_dim_names or ()
    if REPLICATE not in names and DATA_PARALLEL not in names:
        raise ValueError(f"the mesh's axes are {names}, without {DATA_PARALLEL!r}: make it with build_mesh")
    shards = WEIGHTS if CONTEXT_PARALLEL in names else SHARD if REPLICATE in names else DATA_PARALLEL
    return mesh[REPLICATE, shards] if REPLICATE in names else mesh[shards]


def shard_blocks(
    module: nn.Module,
    blocks: Iterable[Unit],
    mesh: DeviceMesh,
    *,
    kept: Iterable[Unit] = (),
    policy: MixedPrecisionPolicy | None = None,
    reshard_after_forward: bool = True,
    cpu_offload: bool = False,
) -> nn.Module:
    """Shard each of `blocks` over the data parallel axis, then the rest of `module` as one unit.

    Parameters become DTensors with placement Shard(0) over `data_parallel`, beside the placement that they have over
    `tensor_parallel`. A parameter that `module` owns outside every block is whole only inside `module.forward`:
    something called from elsewhere (an embedding read in `training_step`, say) has to be one of the blocks.

    Args:
        module: changed in place and returned. Its weights must be the same on every process.
        blocks: submodules of `module` that are called as modules, most often the transformer layers, in the order in
            which they run; modules that share a weight, such as an embedding and its head, are a list, as are layers
            that are gathered together. A block inside another one comes before it. One that is sharded already is left
            as it is.
        kept: more such blocks, with which backward begins: their gathered weights aren't freed before it.
        mesh: a mesh with the axis `data_parallel` (Lightning's `device_mesh`, or `mesh.build_mesh`).
        policy: dtypes of computation and gradient reduction; None computes in the weights' own dtype. What `module`
            itself is called with isn't cast: audio stays in float32.
        reshard_after_forward: free a block's gathered weights after its forward (less memory, gathered again
            in backward).
        cpu_offload: keep weights, gradients and optimizer state in host memory.

    Raises:
        ValueError: no blocks, a block that isn't inside `module`, or a mesh without the axis.
    """
    blocks, kept = list(blocks), list(kept)
    _check(module, [*blocks, *kept])
    policy = policy or MixedPrecisionPolicy()
    options: dict[str, Any] = {
        "mesh": data_parallel_mesh(mesh),
        "offload_policy": CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if cpu_offload else OffloadPolicy(),
        "shard_placement_fn": _shard_evenly(data_parallel_mesh(mesh).size(-1)),
    }
    for block in blocks:
        fully_shard(block, mp_policy=policy, reshard_after_forward=reshard_after_forward, **options)
    for block in kept:
        fully_shard(block, mp_policy=policy, reshard_after_forward=False, **options)
    outermost = replace(policy, cast_forward_inputs=False)
    fully_shard(module, mp_policy=outermost, reshard_after_forward=reshard_after_forward, **options)
    return module


def prefetch(blocks: Sequence[nn.Module], num_ahead: int) -> None:
    """Gather sharded blocks so many ahead of their turn, in forward and backward; without this it is one.

    They run one after the other in this order.
    """
    units: list[FSDPModule] = [block for block in blocks if isinstance(block, FSDPModule)]
    for index, unit in enumerate(units):
        unit.set_modules_to_forward_prefetch(units[index + 1 : index + 1 + num_ahead])
        unit.set_modules_to_backward_prefetch(units[max(index - num_ahead, 0) : index][::-1])


def groups_of_layers(layers: Sequence[nn.Module]) -> list[Unit]:
    """Consecutive layers in groups of `GROUP_SIZE` parameters or more, to be gathered together; larger ones alone."""
    groups: list[list[nn.Module]] = []
    room = 0
    for layer in layers:
        if room <= 0:
            groups.append([])
            room = GROUP_SIZE
        groups[-1].append(layer)
        room -= sum(parameter.numel() for parameter in layer.parameters())
    return [group[0] if len(group) == 1 else group for group in groups]


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Within this every process has the whole weights (its tensor parallel share of them), and calls need no others.

    For generation, whose number of steps differs between processes. All of them have to come in, and out.
    """
    gather(module)
    try:
        yield
    finally:
        release(module)


def gather(module: nn.Module) -> None:
    """Begin what `gathered` does. Outside torch.inference_mode, whose tensors can't be trained with."""
    units = [m for m in module.modules() if isinstance(m, FSDPModule)]
    if isinstance(module, FSDPModule):
        # The unit that runs first takes itself for the root. No public way to say which is (torch 2.11 to 2.13).
        module._get_fsdp_state()._lazy_init()
    for unit in units:
        unit.__dict__[_RESHARDS] = _reshards(unit)
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()


def release(module: nn.Module) -> None:
    """End what `gather` began; nothing where nothing is gathered."""
    for unit in [m for m in module.modules() if isinstance(m, FSDPModule) and _RESHARDS in m.__dict__]:
        unit.set_reshard_after_forward(unit.__dict__.pop(_RESHARDS), recurse=False)
        unit.reshard()


def check_gathered(module: nn.Module) -> None:
    """Check that FSDP hasn't left this process a shard of `module` alone.

    Raises:
        ValueError: it has; the message says how to gather it.
    """
    if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        raise ValueError(
            f"the weights of {type(module).__name__} are sharded over processes: use it within"
            " s2s_parallel.fsdp.gathered(model), on all of them"
        )


def _reshards(unit: FSDPModule) -> bool:
    group = unit._get_fsdp_state()._fsdp_param_group
    return group is not None and group.post_forward_mesh_info is not None


def _shard_evenly(num_shards: int) -> Any:
    """Along the first dimension, except where tensor parallelism shares that and the two don't divide it together.

    Torch's layout for two shards of one dimension holds evenly divided ones only.
    """

    def placement(parameter: nn.Parameter) -> Shard | None:
        if not isinstance(parameter, DTensor) or not parameter.placements[0].is_shard(0):
            return None
        if parameter.shape[0] % (num_shards * parameter.device_mesh.size()) == 0:
            return None
        if parameter.ndim > 1 and parameter.shape[1] % num_shards:
            raise ValueError(
                f"a matrix of {list(parameter.shape)} can't be shared by tensor_parallel_size"
                f" ({parameter.device_mesh.size()}) and {num_shards} FSDP shards together: neither do both divide its"
                f" first dimension, nor the shards its second; use a number of shards that divides {parameter.shape[1]}"
            )
        return Shard(1) if parameter.ndim > 1 else None

    return placement


def _check(module: nn.Module, blocks: list[Unit]) -> None:
    if not blocks:
        raise ValueError("shard_blocks got no blocks: pass the repeated layers, for instance model.layers")
    inside = {id(child) for child in module.modules()} - {id(module)}
    for index, block in enumerate(blocks):
        for part in block if isinstance(block, list) else [block]:
            if id(part) not in inside:
                raise ValueError(
                    f"block {index} ({type(part).__name__}) isn't a submodule of {type(module).__name__}: pass its"
                    " layers"
                )
