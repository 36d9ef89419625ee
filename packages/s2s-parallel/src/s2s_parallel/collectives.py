"""What tensor parallel peers tell each other, in forward and backward.

Two kinds of tensors occur. One that is *whole* is the same on all peers, and so is its gradient. One that is a *part*
is a peer's own: its slice of the frames or features, or its summand. Each function names what it takes and gives.

Shares are even: who calls pads first.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed import ProcessGroup

# Each peer's code is the same, so an autograd function has to be called on all of them or on none.


class _Enter(torch.autograd.Function):
    """Whole → whole, to be used by each peer in its own way: gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.group), None


class _Sum(torch.autograd.Function):
    """Summands → whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return _all_reduce(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherWhole(torch.autograd.Function):
    """Parts along `dim` → whole."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.place = (dim, group)
        return _all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _own_share(grad, *ctx.place), None, None


class _TakeShare(torch.autograd.Function):
    """Whole → parts along `dim`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.place = (dim, group)
        return _own_share(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(grad, *ctx.place), None, None


class _GatherEnter(torch.autograd.Function):
    """Parts along `dim` → whole, to be used by each peer in its own way: gradients are summed and shared out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.place = (dim, group)
        return _all_gather(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter(grad, *ctx.place), None, None


class _SumShare(torch.autograd.Function):
    """Summands → parts along `dim` of their sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
        ctx.place = (dim, group)
        return _reduce_scatter(x, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _all_gather(grad, *ctx.place), None, None


class _SumGradients(torch.autograd.Function):
    """Several whole tensors → the same; their gradients, each peer's a summand, are summed in one go."""

    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        ctx.set_materialize_grads(True)
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat = _all_reduce(torch.cat([grad.flatten() for grad in grads]), ctx.group)
        sizes = [grad.numel() for grad in grads]
        return None, *(part.view_as(grad) for part, grad in zip(flat.split(sizes), grads, strict=True))


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """A whole tensor as the input of each peer's own share of the work."""
    return _apply(_Enter, x, group)


def sum_summands(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over peers, whole."""
    return _apply(_Sum, x, group)


def gather_whole(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """The whole of which each peer has its share along `dim`."""
    return _apply(_GatherWhole, x, dim, group)


def take_share(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """This peer's share of a whole tensor along `dim`."""
    return _apply(_TakeShare, x, dim, group)


def gather_and_enter(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """`gather_whole`, then `enter`, with one collective in backward."""
    return _apply(_GatherEnter, x, dim, group)


def sum_and_share(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """`sum_summands`, then `take_share`, with one collective in forward."""
    return _apply(_SumShare, x, dim, group)


def sum_gradients(tensors: list[Tensor], group: ProcessGroup) -> list[Tensor]:
    """The same whole tensors, which each peer uses in its own way."""
    needed = [x for x in tensors if x.requires_grad]
    if not needed:
        return tensors
    summed = iter(_SumGradients.apply(group, *needed))  # type: ignore[no-untyped-call]
    return [next(summed) if x.requires_grad else x for x in tensors]


def _apply(function: Any, *args: Any) -> Tensor:
    result: Tensor = function.apply(*args)
    return result


def _all_reduce(x: Tensor, group: ProcessGroup) -> Tensor:
    result: Tensor = funcol.wait_tensor(funcol.all_reduce(x.contiguous(), "sum", group))
    return result


def _all_gather(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    result: Tensor = funcol.wait_tensor(funcol.all_gather_tensor(x.contiguous(), dim % x.ndim, group))
    return result


def _reduce_scatter(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    result: Tensor = funcol.wait_tensor(funcol.reduce_scatter_tensor(x.contiguous(), "sum", dim % x.ndim, group))
    return result


def _own_share(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    return x.chunk(group.size(), dim)[group.rank()].contiguous()
