"""What tensor and context parallel peers tell each other, in forward and backward.

Two kinds of tensors occur. One that is *whole* is the same on all peers, and so is its gradient. One that is a *part*
is a peer's own: its slice of the frames or features, or its summand. Each function names what it takes and gives.

Shares are even: who calls pads first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
from torch import Tensor
from torch.distributed import ProcessGroup

FRAMES = 1  # the dimension of hidden states [B, T, H]
Exchange = Callable[..., Tensor]

# Each peer's code is the same, so an autograd function has to be called on all of them or on none.


class _Exchange(torch.autograd.Function):
    """`there(x, *place)` in forward, `back(grad, *place)` in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Exchange, back: Exchange, *place: Any) -> Tensor:
        ctx.back, ctx.place = back, place
        return there(x, *place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grad, *ctx.place), None, None, *(None for _ in ctx.place)


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


def frames_are_shared() -> bool:
    """Whether peers that may share frames do so now, in sequence and context parallelism."""
    # Generation reads one frame at a time, and computes no gradients. Backward computes again with gradients on.
    return torch.is_grad_enabled()


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """A whole tensor as the input of each peer's own share of the work: gradients are summed."""
    return _exchange(x, _as_it_is, _all_reduce, group)


def sum_summands(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum over peers, whole."""
    return _exchange(x, _all_reduce, _as_it_is, group)


def gather_whole(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """The whole of which each peer has its share along `dim`."""
    return _exchange(x, _all_gather, _own_share, dim, group)


def take_share(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """This peer's share of a whole tensor along `dim`."""
    return _exchange(x, _own_share, _all_gather, dim, group)


def gather_and_enter(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """`gather_whole`, then `enter`, with one collective in backward."""
    return _exchange(x, _all_gather, _reduce_scatter, dim, group)


def sum_and_share(x: Tensor, dim: int, group: ProcessGroup) -> Tensor:
    """`sum_summands`, then `take_share`, with one collective in forward."""
    return _exchange(x, _reduce_scatter, _all_gather, dim, group)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same tensor; its gradient is multiplied."""
    return _exchange(x, _as_it_is, torch.mul, factor)


def sum_gradients(tensors: list[Tensor], group: ProcessGroup) -> list[Tensor]:
    """The same whole tensors, which each peer uses in its own way."""
    needed = [x for x in tensors if x.requires_grad]
    if not needed:
        return tensors
    summed = iter(_SumGradients.apply(group, *needed))  # type: ignore[no-untyped-call]
    return [next(summed) if x.requires_grad else x for x in tensors]


def _exchange(x: Tensor, there: Exchange, back: Exchange, *place: Any) -> Tensor:
    result: Tensor = _Exchange.apply(x, there, back, *place)  # type: ignore[no-untyped-call]
    return result


def _as_it_is(x: Tensor, *_: Any) -> Tensor:
    return x.view_as(x)


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
