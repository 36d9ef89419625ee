"""Mixtures of experts: each tensor parallel peer computes some of the experts, for all frames."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from s2s_parallel import collectives as peers
from s2s_parallel.forwards import wrap_forward


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
    if getattr(getattr(experts, "config", None), "_experts_implementation", None) == "eager":
        raise ValueError(
            f"{name}: transformers' eager experts leave out those without a frame, and processes would wait for each"
            " other: don't set experts_implementation to eager under tensor parallelism"
        )
    own = num_experts // group.size()
    experts.num_experts = own  # type: ignore[assignment]
    # transformers then leaves out frames whose expert's number is beyond the last
    experts._is_expert_parallel = True  # type: ignore[assignment]
    wrap_forward(experts, _forward, group, own)


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
