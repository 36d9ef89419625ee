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


def compile_in_training(block: nn.Module, *, memory_budget: float = 1.0) -> None:
    """Compile `block.forward` where gradients are computed. Blocks of one class share what is compiled.

    The first batches' kernels are for their size, and with the next size come kernels for any, which are 1 % slower. On
    a CPU each size has its own: torch's compiler fails at an encoder of any size there. Generation isn't compiled: it
    reads a frame at a time into a cache.

    Args:
        block: changed in place.
        memory_budget: the share of its activations that it keeps for backward. The rest is computed again there: first
            what costs memory traffic alone, then attention and small products.
    """
    wrap_forward(block, _forward, memory_budget)


@cache
def _compiled(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MANY_SIZES)
    compiled: Callable[..., Any] = torch.compile(forward, dynamic=False if device_type == "cpu" else None)
    return compiled


def _forward(memory_budget: float, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    block = forward.args[0]
    functorch_config.activation_memory_budget = memory_budget  # read where a size is new, and compiled
    return _compiled(forward.func, next(block.parameters()).device.type)(block, *args, **kwargs)
