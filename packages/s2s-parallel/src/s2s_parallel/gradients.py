"""Norms and clipping of gradients, however they are shared: sharded, copied, plain, over one mesh or another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def total_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients as if one device had them, a scalar; the same on all processes.

    Every process has to call it. Plain gradients have to be the same on all of them.
    """
    norms = [_norm(gradients) for gradients in _by_layout(parameters)]
    if not norms:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """The norm of gradients of one layout.

    Of each process's own: DTensors are looked at one by one in every operation, which took a tenth of a step's time.
    """
    norm = torch.nn.utils.get_total_norm(local_parts(gradients)).float()
    first = gradients[0]
    if not isinstance(first, DTensor):
        return norm
    square = norm.square()
    for dim, placement in enumerate(first.placements):
        assert not placement.is_partial(), "gradients are summed before they are looked at"
        if not placement.is_replicate():
            square = funcol.wait_tensor(funcol.all_reduce(square, "sum", (first.device_mesh, dim)))
    return square.sqrt()


def clip_norm(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor | None = None) -> Tensor:
    """Scale the gradients so that their `total_norm` is at most `max_norm`; return what it was.

    `norm` is that, if it is known.
    """
    parameters = list(parameters)
    norm = total_norm(parameters) if norm is None else norm
    scale_gradients(parameters, 1 / clip_divisor(norm, max_norm))
    return norm


def clip_divisor(norm: Tensor, max_norm: float) -> Tensor:
    """What to divide gradients of `norm` by so that theirs is at most `max_norm`: a float32 scalar, 1 or more."""
    return ((norm.float() + 1e-6) / max_norm).clamp(min=1.0)


def clip_value(parameters: Iterable[nn.Parameter], max_value: float) -> None:
    """Bring each element of the gradients to between -`max_value` and `max_value`."""
    for gradient in _own_gradients(parameters):
        gradient.clamp_(-max_value, max_value)


def scale_gradients(parameters: Iterable[nn.Parameter], factor: Tensor) -> None:
    """Multiply all gradients by a scalar."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in _own_gradients(parameters):
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, gradients in by_device.items():
        torch._foreach_mul_(gradients, factor.to(device))


def _own_gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """What this process has of the gradients."""
    return local_parts([parameter.grad for parameter in parameters if parameter.grad is not None])


@torch.no_grad()
def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process has of tensors, which stay where they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def _by_layout(parameters: Iterable[nn.Parameter]) -> list[list[Tensor]]:
    """Gradients in groups that torch can take together: of one mesh and one placement."""
    groups: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None:
            layout = (gradient.device_mesh, gradient.placements) if isinstance(gradient, DTensor) else None
            groups.setdefault((layout, gradient.device), []).append(gradient)
    return list(groups.values())
