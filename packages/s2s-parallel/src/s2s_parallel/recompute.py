"""Activation checkpointing that leaves the modules' names as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from s2s_parallel.buffers import tracking_norms
from s2s_parallel.forwards import unwrap_forward, wrap_forward

# Cheap to keep for what they cost to compute: "selective" computes everything else again.
_KEPT_OPS = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops._c10d_functional.all_reduce.default,
        torch.ops._c10d_functional.all_gather_into_tensor.default,
        torch.ops._c10d_functional.reduce_scatter_tensor.default,
    }
)


def checkpoint_blocks(blocks: Iterable[nn.Module], mode: str | int) -> None:
    """Let backward compute blocks again: "none", "full", "selective", or every Nth of them."""
    for index, block in enumerate(blocks):
        if mode == "selective":
            recompute_in_backward(block, True, selective=True)
        elif mode == "full" or (isinstance(mode, int) and index % mode == 0):
            recompute_in_backward(block, True)


def recompute_in_backward(module: nn.Module, enabled: bool, *, selective: bool = False) -> None:
    """Let backward compute `module` again instead of storing what is inside it, or undo that.

    Args:
        module: changed in place.
        enabled: False puts back the forward that it had.
        selective: keep the results of matrix products, attention and exchanges between devices.
    """
    unwrap_forward(module, _checkpointed)
    if enabled:
        wrap_forward(module, _checkpointed, tracking_norms(module), selective)


def _checkpointed(
    norms: list[_BatchNorm], selective: bool, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    norms = [norm for norm in norms if norm.training]
    if norms or selective:
        kwargs["context_fn"] = partial(_contexts, norms, selective)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _contexts(
    norms: list[_BatchNorm], selective: bool
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    contexts: Any = create_selective_checkpoint_contexts(_policy) if selective else (nullcontext(), nullcontext())
    first, second = contexts
    return (first, _both(second, norms)) if norms else (first, second)  # torch.compile knows torch's contexts alone


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _KEPT_OPS else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _both(context: AbstractContextManager[Any], norms: list[_BatchNorm]) -> Iterator[None]:
    with context, _statistics_kept(norms):
        yield


@contextmanager
def _statistics_kept(norms: list[_BatchNorm]) -> Iterator[None]:
    """The second computation of a batch mustn't count twice in the running statistics."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)
