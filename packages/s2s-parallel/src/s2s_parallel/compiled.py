"""torch.compile by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from s2s_parallel.forwards import wrap_forward

MANY_SIZES = 64  # of batches that are compiled; torch gives up after 8 otherwise


def compile_in_training(block: nn.Module, *, memory_budget: float = 1.0) -> None:
    """Compile `block.forward` where gradients are computed. Blocks of one class share what is compiled.

    The first batches' kernels are for their size. Once another size comes, kernels for any are compiled, which are
    slower by 1 to 2 %. On a CPU each size has its own. Generation isn't compiled: it reads a frame at a time into a
    cache.

    Args:
        block: changed in place; its inputs have their examples and frames in the first two dimensions.
        memory_budget: the share of its activations that it keeps for backward. The rest is computed again there: first
            what costs memory traffic alone, then attention and small products.
    """
    wrap_forward(block, _forward, memory_budget)


class _Compiled:
    """A forward of blocks, compiled for the size that comes first and for any other.

    Torch by itself would compile anew for each dimension that is seen to change: for lengths, then for examples.
    """

    def __init__(self, forward: Callable[..., Any], device_type: str) -> None:
        # On a CPU torch 2.13's inductor can't order symbolic strides of a Conformer: "cannot determine truth value of
        # Relational" in its `argsort`.
        self._any_size = device_type != "cpu"
        self._compiled: Any = torch.compile(forward, dynamic=None if self._any_size else False)
        self._first: list[torch.Size] | None = None

    def __call__(self, tensors: list[Tensor], *args: Any, **kwargs: Any) -> Any:
        sizes = [tensor.shape for tensor in tensors]
        if self._first is None:
            self._first = sizes
        if self._any_size and sizes != self._first:
            for tensor in tensors:
                for dim in range(min(tensor.ndim, 2)):
                    torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return self._compiled(*args, **kwargs)


@cache
def _compiled(forward: Callable[..., Any], device_type: str) -> _Compiled:
    return _Compiled(forward, device_type)


def _forward(memory_budget: float, forward: Any, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    # Both are read where a size is new, and compiled.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MANY_SIZES)
    functorch_config.activation_memory_budget = memory_budget
    return _compiled(forward.func, tensors[0].device.type)(tensors, forward.args[0], *args, **kwargs)
