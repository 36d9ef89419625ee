"""Activation checkpointing that leaves the modules' names as they are."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(module: nn.Module, enabled: bool) -> None:
    """Let backward compute `module` again instead of storing what is inside it, or undo that.

    The module's `forward` is replaced, not the module: a wrapper would put its own name into those of the parameters,
    which regexes, sharding plans and checkpoints go by.
    """
    module.__dict__.pop("forward", None)
    if enabled:
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        module.forward = partial(_checkpointed, module.forward, norms)


def _checkpointed(forward: Callable[..., Any], norms: list[_BatchNorm], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    norms = [norm for norm in norms if norm.training]
    if norms:
        kwargs["context_fn"] = partial(_contexts, norms)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _contexts(norms: list[_BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(norms)


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
