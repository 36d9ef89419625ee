"""Mixtures of experts: each tensor parallel peer computes some of the experts, for all frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from s2s_parallel import collectives as peers
from s2s_parallel.local_parameters import wrap_forward


def share_experts(experts: nn.Module, name: str, group: ProcessGroup) -> None:
    """Let `experts.forward(hidden [N, H], indices [N, top_k], weights [N, top_k])` compute this peer's experts alone.

    Raises:
        ValueError: their number can't be told, or doesn't divide.
    """
    num_experts = getattr(experts, "num_experts", None)
    if not isinstance(num_experts, int):
        raise ValueError(f"{name} is shared as experts, but its {type(experts).__name__} has no num_experts")
    if num_experts % group.size():
        raise ValueError(f"tensor_parallel_size ({group.size()}) must divide the experts of {name} ({num_experts})")
    own = num_experts // group.size()
    experts.num_experts = own  # type: ignore[assignment]
    # transformers then leaves out frames whose expert's number is beyond the last
    experts._is_expert_parallel = True  # type: ignore[assignment]
    wrap_forward(experts, partial(_forward, group, own))


def _forward(
    group: ProcessGroup,
    own: int,
    forward: Callable[..., Tensor],
    hidden_NH: Tensor,
    indices_NK: Tensor,
    weights_NK: Tensor,
) -> Tensor:
    local_NK = indices_NK - group.rank() * own
    mine_NK = (local_NK >= 0) & (local_NK < own)
    weights_NK = torch.where(mine_NK, peers.enter(weights_NK, group), 0.0)
    summand = forward(peers.enter(hidden_NH, group), torch.where(mine_NK, local_NK, own), weights_NK)
    return peers.sum_summands(summand, group)
