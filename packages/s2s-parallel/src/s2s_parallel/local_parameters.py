"""Parameters kept as DTensors, computed with as plain tensors.

A DTensor knows how it is shared, which the optimizer, clipping and checkpoints need. A forward needs this peer's share
alone: it runs on that, with no dispatch through DTensor, and writes no other code than on one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from s2s_parallel.collectives import sum_gradients
from s2s_parallel.forwards import wrap_forward


class Use(Enum):
    """How a parameter is shared, and what its gradient on one peer is."""

    ROWS = "rows"  # Shard(0): the gradient of its share
    COLUMNS = "columns"  # Shard(1): the gradient of its share
    WHOLE = "whole"  # a copy each, used alike: the whole gradient
    SUMMAND = "summand"  # a copy each, used in each peer's own way: a summand of the gradient
    FIRST = "first"  # a copy each, used by the first peer alone: zero on the others (a bias behind a sum)


_PLACEMENTS: dict[Use, Placement] = {Use.ROWS: Shard(0), Use.COLUMNS: Shard(1)}


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of a module and its use."""

    module: nn.Module
    name: str
    use: Use


class Distributor:
    """Turns parameters into DTensors over the tensor parallel mesh; tied ones stay tied."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._mesh = mesh
        self._done: dict[int, tuple[nn.Parameter, nn.Parameter, Use]] = {}  # by id; what has an id has to stay alive

    def distribute(self, entry: LocalParameter) -> None:
        """Replace a parameter in its module. Its values have to be the same on all peers."""
        parameter = entry.module._parameters[entry.name]
        assert parameter is not None
        if id(parameter) in self._done:
            _, made, use = self._done[id(parameter)]
            assert use is entry.use, f"{entry.name} is tied, and used as {use} and {entry.use}"
        else:
            placement = _PLACEMENTS.get(entry.use, Replicate())
            shared = distribute_tensor(parameter.data, self._mesh, [placement], src_data_rank=None)
            made = nn.Parameter(shared, requires_grad=parameter.requires_grad)
            self._done[id(parameter)] = (parameter, made, entry.use)
        entry.module._parameters[entry.name] = made


def compute_locally(module: nn.Module, entries: Iterable[LocalParameter], mesh: DeviceMesh) -> None:
    """Let `module.forward` see plain tensors in place of the parameters of `entries`, which lie inside it."""
    ordered = list(entries)
    wrap_forward(module, _forward_locally, ordered, mesh)


def _forward_locally(
    entries: list[LocalParameter], mesh: DeviceMesh, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    with _swapped(entries, mesh):
        return forward(*args, **kwargs)


@contextmanager
def _swapped(entries: list[LocalParameter], mesh: DeviceMesh) -> Iterator[None]:
    kept = [entry.module._parameters[entry.name] for entry in entries]
    tensors: list[Any] = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in kept]
    own = [i for i, entry in enumerate(entries) if entry.use in (Use.SUMMAND, Use.FIRST)]
    for i, tensor in zip(own, sum_gradients([_not_none(tensors[i]) for i in own], mesh.get_group()), strict=True):
        tensors[i] = tensor
    for entry, tensor in zip(entries, tensors, strict=True):
        first = entry.use is not Use.FIRST or mesh.get_local_rank() == 0
        # Not a Parameter: autograd has to see where it comes from.
        slots: dict[str, Any] = entry.module._parameters
        slots[entry.name] = tensor if first else _not_none(tensor) * 0
    try:
        yield
    finally:
        for entry, parameter in zip(entries, kept, strict=True):
            entry.module._parameters[entry.name] = parameter


def _not_none(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def direct_parameters(module: nn.Module) -> list[str]:
    """Names of the parameters that `module` itself holds."""
    return [name for name, parameter in module._parameters.items() if isinstance(parameter, torch.Tensor)]
