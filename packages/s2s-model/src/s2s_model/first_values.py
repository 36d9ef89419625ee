"""Layers built without torch's random first values, where others are written over them anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

KINDS: tuple[Any, ...] = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


@contextmanager
def drawn_once() -> Iterator[None]:
    """Within it linear layers, embeddings and convolutions are built without torch's first values.

    They take 25 s for a billion weights, and transformers' own draw or a file's weights are written over them. Layers
    that nothing was written to get them at the end.
    """
    built: list[tuple[Any, Callable[[Any], None]]] = []
    own = {kind: kind.reset_parameters for kind in KINDS}
    try:
        for kind, reset in own.items():
            kind.reset_parameters = partialmethod(_mark, reset, built)
        yield
    finally:
        for kind, reset in own.items():
            kind.reset_parameters = reset
    for module, reset in built:
        _fill(module, reset)


@torch.no_grad()
def _mark(module: Any, reset: Callable[[Any], None], built: list[tuple[Any, Callable[[Any], None]]]) -> None:
    """Stand in for `reset_parameters`: a first number that no draw gives."""
    for tensor in _tensors(module):
        tensor.view(-1)[:1].fill_(nan)
    built.append((module, reset))


@torch.no_grad()
def _fill(module: Any, reset: Callable[[Any], None]) -> None:
    tensors = _tensors(module)
    drawn = [not tensor.is_meta and not tensor.view(-1)[:1].isnan().any() for tensor in tensors]
    if all(drawn):
        return
    kept = [tensor.clone() for tensor in tensors]
    reset(module)
    for tensor, value, is_drawn in zip(tensors, kept, drawn, strict=True):
        if is_drawn:
            tensor.copy_(value)


def _tensors(module: Any) -> list[Tensor]:
    return [tensor for tensor in (module.weight, getattr(module, "bias", None)) if tensor is not None]
