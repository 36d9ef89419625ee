"""Tables and heads of tokens, shared between tensor parallel peers by entry or by feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from s2s_parallel import collectives as peers
from s2s_parallel.forwards import wrap_forward
from s2s_parallel.leaves import leaf_parameters
from s2s_parallel.local_parameters import (
    Distributor,
    LocalParameter,
    Use,
    compute_locally,
    direct_parameters,
)
from s2s_parallel.mesh import divisors, join_sizes
from s2s_parallel.parts import ModelParts
from s2s_parallel.registry import Style


def share_tokens(parts: ModelParts, distributor: Distributor, mesh: DeviceMesh) -> None:
    """Share heads by entry; embeddings by feature, or by entry where they are tied to a head.

    Raises:
        ValueError: an embedding with adapters, or features that don't divide.
    """
    of_heads = {parameter for head in parts.heads for parameter in head.parameters()}
    for head in parts.heads:
        width = _width(head)
        _distribute(head, leaf_parameters(head, "a head of the model", Style.COLWISE), distributor, mesh)
        wrap_forward(head, _head, mesh, width)
    for embedding in parts.embeddings:
        weight = embedding._parameters.get("weight")
        if weight is None or len(list(embedding.parameters())) != 1:
            raise ValueError(
                f"{type(embedding).__name__} is no plain table: adapters on embeddings can't be shared between tensor"
                " parallel peers, use tensor_parallel_size=1 or leave embeddings out of model.lora.target_modules"
            )
        if weight in of_heads:
            _share_entries(embedding, weight.shape[0], distributor, mesh)
        else:
            _share_features(embedding, weight.shape[1], distributor, mesh)


def copy_the_rest(parts: ModelParts, distributor: Distributor, mesh: DeviceMesh) -> None:
    """Make DTensors of what else the LLM's body has (its last norm): a copy each."""
    done = {m for part in (*parts.layers, *parts.embeddings, *parts.heads) for m in part.modules()}
    for module in parts.body.modules():
        if module not in done and direct_parameters(module):
            entries = [LocalParameter(module, name, Use.WHOLE) for name in direct_parameters(module)]
            _distribute(module, entries, distributor, mesh)


def _distribute(module: nn.Module, entries: list[LocalParameter], distributor: Distributor, mesh: DeviceMesh) -> None:
    for entry in entries:
        distributor.distribute(entry)
    compute_locally(module, entries, mesh)


def _width(head: nn.Module) -> int:
    weight: Any = next(m.weight for m in head.modules() if isinstance(m, nn.Linear))
    return int(weight.shape[0])


def _head(mesh: DeviceMesh, width: int, forward: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    logits = forward(peers.enter(hidden, mesh.get_group()))
    shape = torch.Size((*hidden.shape[:-1], width))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(logits, mesh, [Shard(logits.ndim - 1)], run_check=False, shape=shape, stride=stride)


def _share_features(embedding: nn.Module, width: int, distributor: Distributor, mesh: DeviceMesh) -> None:
    if width % mesh.size():
        raise ValueError(
            f"trainer.strategy.tensor_parallel_size ({mesh.size()}) must divide the LLM's hidden size ({width}): use"
            f" {join_sizes(divisors(width)[:8])}"
        )
    _distribute(embedding, [LocalParameter(embedding, "weight", Use.COLUMNS)], distributor, mesh)
    wrap_forward(embedding, _gather_features, mesh)


def _gather_features(mesh: DeviceMesh, forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    return peers.gather_whole(forward(ids), -1, mesh.get_group())


def _share_entries(embedding: nn.Module, num_entries: int, distributor: Distributor, mesh: DeviceMesh) -> None:
    share = -(-num_entries // mesh.size())
    begin = min(mesh.get_local_rank() * share, num_entries)
    own = min(share, num_entries - begin)
    padding = getattr(embedding, "padding_idx", None)
    if padding is not None:  # its row gets no gradient here
        embedding.padding_idx = padding - begin if begin <= padding < begin + own else None  # type: ignore[assignment]
    _distribute(embedding, [LocalParameter(embedding, "weight", Use.ROWS)], distributor, mesh)
    wrap_forward(embedding, _sum_entries, mesh, begin, own)


def _sum_entries(mesh: DeviceMesh, begin: int, own: int, forward: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    mine = (ids >= begin) & (ids < begin + own)
    embeds = forward(torch.where(mine, ids - begin, 0))
    return peers.sum_summands(torch.where(mine[..., None], embeds, 0.0), mesh.get_group())
