"""torch.compile by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from s2s_parallel.forwards import wrap_forward


def compile_in_training(block: nn.Module) -> None:
    """Compile `block.forward` where gradients are computed. Blocks of one class share what is compiled.

    Generation isn't: it reads a frame at a time into a cache.
    """
    block_class: Any = type(block)
    wrap_forward(block, _forward, _compiled(block_class))


@cache
def _compiled(block_class: Any) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(block_class.forward)
    return compiled


def _forward(compiled: Callable[..., Any], forward: Any, *args: Any, **kwargs: Any) -> Any:
    return compiled(forward.args[0], *args, **kwargs) if torch.is_grad_enabled() else forward(*args, **kwargs)
