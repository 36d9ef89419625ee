"""Cross entropy of logits of which each tensor parallel peer may have a share.

Torch's `loss_parallel` wants its backward inside a context, and no weights; this is a function like any other.

Shapes: `N` frames, `K` groups of classes (codebooks; 1 for text), `C` classes of a group.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed._functional_collectives as funcol
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its elements, gathered if it is shared."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cross_entropy(logits: Tensor, labels_NK: Tensor) -> Tensor:
    """Cross entropy of each label [N, K] in float32.

    Args:
        logits: [N, K * C], group after group. A DTensor has placement Shard(1), in shares that need no common size
            and need not end with a group.
        labels_NK: int64, from 0 to C - 1; the same on all peers.
    """
    if not isinstance(logits, DTensor):
        num_classes = logits.shape[-1] // labels_NK.shape[1]
        losses = F.cross_entropy(logits.reshape(-1, num_classes).float(), labels_NK.flatten(), reduction="none")
        return losses.view(labels_NK.shape)
    assert logits.placements == (Shard(1),), logits.placements
    group = logits.device_mesh.get_group()
    num_classes = logits.shape[1] // labels_NK.shape[1]
    in_range = ((labels_NK >= 0) & (labels_NK < num_classes)).all()
    torch._assert_async(in_range, f"a label isn't from 0 to {num_classes - 1}")  # as torch's own cross entropy does
    return _apply(logits.to_local(), labels_NK, num_classes, logits.shape[1], group)


def _apply(logits: Tensor, labels_NK: Tensor, num_classes: int, width: int, group: ProcessGroup) -> Tensor:
    result: Tensor = _SharedCrossEntropy.apply(logits, labels_NK, num_classes, width, group)  # type: ignore[no-untyped-call]
    return result


class _SharedCrossEntropy(torch.autograd.Function):
    """Peers exchange a maximum, a sum and a label's logit for each frame and group, never logits."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels_NK: Tensor, num_classes: int, width: int, group: ProcessGroup
    ) -> Tensor:
        begin = group.rank() * -(-width // group.size())  # as torch.chunk has it
        segments = _segments(begin, logits.shape[1], num_classes)
        scaled = logits.float()
        # Lightning's bf16-true makes bf16 the default dtype of a step
        top_NK = torch.full(labels_NK.shape, -torch.inf, dtype=torch.float32, device=logits.device)
        for k, columns in segments:
            top_NK[:, k] = scaled[:, columns].amax(1)
        top_NK = funcol.wait_tensor(funcol.all_reduce(top_NK, "max", group))
        exps = torch.empty_like(scaled)
        sums_2NK = torch.zeros(2, *labels_NK.shape, dtype=torch.float32, device=logits.device)
        places_NK = labels_NK + torch.arange(labels_NK.shape[1], device=labels_NK.device) * num_classes - begin
        mine_NK = (places_NK >= 0) & (places_NK < logits.shape[1])
        places_NK = torch.where(mine_NK, places_NK, 0)
        for k, columns in segments:
            shifted = scaled[:, columns] - top_NK[:, k, None]
            sums_2NK[1, :, k] = shifted.gather(
                1, (places_NK[:, k, None] - columns.start).clamp(0, shifted.shape[1] - 1)
            )[:, 0]
            exps[:, columns] = shifted.exp_()
            sums_2NK[0, :, k] = exps[:, columns].sum(1)
        sums_2NK[1].masked_fill_(~mine_NK, 0.0)
        total_NK, label_NK = funcol.wait_tensor(funcol.all_reduce(sums_2NK, "sum", group)).unbind(0)
        for k, columns in segments:
            exps[:, columns] /= total_NK[:, k, None]
        ctx.save_for_backward(exps, places_NK, mine_NK)
        ctx.segments, ctx.dtype = segments, logits.dtype
        losses_NK: Tensor = total_NK.log() - label_NK
        return losses_NK

    @staticmethod
    def backward(ctx: Any, grad_NK: Tensor) -> tuple[Tensor | None, ...]:
        probabilities, places_NK, mine_NK = ctx.saved_tensors
        grad = torch.zeros_like(probabilities)
        for k, columns in ctx.segments:
            torch.mul(probabilities[:, columns], grad_NK[:, k, None], out=grad[:, columns])
        if grad.shape[1]:
            grad.scatter_add_(1, places_NK, torch.where(mine_NK, -grad_NK, 0.0))
        return grad.to(ctx.dtype), None, None, None, None


def _segments(begin: int, width: int, num_classes: int) -> list[tuple[int, slice]]:
    """The groups of which this peer has columns, and which: `begin` is its first column in the whole."""
    segments = []
    for k in range(begin // num_classes, -(-(begin + width) // num_classes)):
        start, stop = max(k * num_classes, begin), min((k + 1) * num_classes, begin + width)
        if start < stop:
            segments.append((k, slice(start - begin, stop - begin)))
    return segments
