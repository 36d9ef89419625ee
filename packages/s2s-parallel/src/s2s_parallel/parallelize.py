"""A model onto its devices: tensor and context parallel, recomputed, compiled, then sharded, each by one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from s2s_parallel.buffers import keep_statistics_alike
from s2s_parallel.compiled import compile_in_training
from s2s_parallel.config import ParallelConfig, check_config, check_layout
from s2s_parallel.context_parallel import apply_context_parallel
from s2s_parallel.fsdp import data_parallel_mesh, groups_of_layers, mixed_precision, prefetch, shard_blocks
from s2s_parallel.mesh import CONTEXT_PARALLEL, DATA_PARALLEL, TENSOR_PARALLEL
from s2s_parallel.parts import ModelParts
from s2s_parallel.recompute import checkpoint_blocks
from s2s_parallel.same_weights import check_same_weights
from s2s_parallel.tensor_parallel import apply_tensor_parallel


def parallelize(model: nn.Module, parts: ModelParts, mesh: DeviceMesh | None, config: ParallelConfig) -> None:
    """Lay `model` out on `mesh`, in place; None: on one device, or copied by DDP.

    The LLM is tensor parallel, context parallel and sharded over data and context parallel processes. The encoder is
    sharded over all processes: peers compute the same there, and a copy each would drift apart.

    Args:
        model: the whole; its weights have to be the same on all processes.
        parts: its parts.
        mesh: with the axes of `mesh.build_mesh`.
        config: how.

    Raises:
        ValueError: a value of `config` means nothing, the LLM can't be shared so, or weights differ.
    """
    check_config(config)
    is_tensor_parallel = mesh is not None and mesh[TENSOR_PARALLEL].size() > 1
    check_layout(config, sharded=mesh is not None, tensor_parallel=is_tensor_parallel)
    if mesh is not None:
        check_same_weights(model)
    if mesh is not None and is_tensor_parallel:
        apply_tensor_parallel(parts, mesh[TENSOR_PARALLEL], config)
    if mesh is not None and CONTEXT_PARALLEL in (mesh.mesh_dim_names or ()):
        apply_context_parallel(parts, mesh[CONTEXT_PARALLEL].get_group(), mesh[TENSOR_PARALLEL].size())
    checkpoint_blocks(parts.layers, config.activation_checkpointing)
    if config.compile:
        for layer in [] if is_tensor_parallel else parts.layers:
            compile_in_training(layer, memory_budget=config.activation_memory_budget)
        for layer in [*parts.subsampling, *parts.encoder_layers]:
            compile_in_training(layer, memory_budget=config.encoder_memory_budget)
    if mesh is not None:
        _shard(model, parts, mesh, config)
        keep_statistics_alike(model)


def _shard(model: nn.Module, parts: ModelParts, mesh: DeviceMesh, config: ParallelConfig) -> None:
    options: dict[str, Any] = {
        "policy": mixed_precision(_dtype(config.param_dtype), _dtype(config.reduce_dtype)),
        "reshard_after_forward": config.reshard_after_forward,
        "cpu_offload": config.cpu_offload,
    }
    needed = config.param_dtype is not None or config.cpu_offload  # FSDP does these too
    world_size = torch.distributed.get_world_size()
    if world_size > 1 or needed:
        everyone = init_device_mesh(mesh.device_type, (world_size,), mesh_dim_names=(DATA_PARALLEL,))
        # Its layers are small and have many parameters: gathered once a step, several at a time. Of a group torch 2.11
        # casts the first layer's inputs alone, so what computes in another dtype is gathered one by one.
        layers = parts.encoder_layers if config.param_dtype else groups_of_layers(parts.encoder_layers)
        shard_blocks(parts.encoder, [], everyone, kept=layers, **options)
    if data_parallel_mesh(mesh).size() > 1 or needed:
        tables = _tied([*parts.embeddings, *parts.heads])
        # Backward begins with heads and last norm: gathered weights of theirs wait for it.
        kept = [table for table in tables if isinstance(table, list) or table in parts.heads]
        freed = [table for table in tables if table not in kept]
        shard_blocks(model, [*freed, *parts.layers], mesh, kept=[*kept, parts.body], **options)
    prefetch(parts.layers, config.prefetch_blocks)


def _tied(modules: list[nn.Module]) -> list[nn.Module | list[nn.Module]]:
    """The modules, those with a common weight in one list."""
    groups: list[list[nn.Module]] = []
    for module in modules:
        own = set(module.parameters())
        tied = next((group for group in groups if any(own & set(other.parameters()) for other in group)), None)
        if tied is None:
            groups.append([module])
        else:
            tied.append(module)
    return [group[0] if len(group) == 1 else group for group in groups]


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)
