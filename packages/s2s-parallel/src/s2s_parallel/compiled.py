"""torch.compile by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import nn

from s2s_parallel.forwards import wrap_forward

MANY_SIZES = 64  # of batches; torch gives up after 8 otherwise


def compile_in_training(block: nn.Module, *, each_size: bool = False, memory_budget: float = 1.0) -> None:
    """Compile `block.forward` where gradients are computed. Blocks of one class share what is compiled.

    Generation isn't: it reads a frame at a time into a cache.

    Args:
        block: changed in place.
        each_size: compile anew for each size of batch, which is faster than what takes any.
        memory_budget: the share of its activations that it keeps for backward. The rest is computed again there: first
            what costs memory traffic alone, then attention and small products.
    """
    if each_size:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MANY_SIZES)
    block_class: Any = type(block)
    wrap_forward(block, _forward, _compiled(block_class, each_size), memory_budget)


@cache
def _compiled(block_class: Any, each_size: bool) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(block_class.forward, dynamic=False if each_size else None)
    return compiled


def _forward(compiled: Callable[..., Any], memory_budget: float, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    functorch_config.activation_memory_budget = memory_budget  # read where a size is new, and compiled
    return compiled(forward.args[0], *args, **kwargs)
