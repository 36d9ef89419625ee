"""What lies between two convolutions of a HiFi-GAN, done in one pass over memory instead of six.

Shapes: `B` batch, `T` steps at the rate of a layer, `C` channels, `p` steps of padding. All tensors are [B, T, C], so
that the tensor cores can read them as they lie.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu


class Span(NamedTuple):
    """How much of a batch is audio; both in frames of the codec, on the device."""

    frames_B: Tensor  # int64, of each example; what follows is zero
    end_1: Tensor  # int64 [1], where the batch ends: there padding mirrors


class Branch(NamedTuple):
    """What a convolution made, before its bias: step t of the layer is `output_BTC[:, t + offset]`."""

    output_BTC: Tensor
    offset: int = 0


class Tail(NamedTuple):
    """How the outputs of up to three convolutions become the input of the next.

    x = (scale * sum of outputs + bias, zero behind an example's end) + residual_scale * sum of residuals.
    """

    bias_C: Tensor  # float32, `scale` included
    steps_per_frame: int
    slope: float  # of the leaky ReLU for negative values
    scale: float = 1.0
    residual_scale: float = 1.0


MOST_BRANCHES = 3


def conv_tail(
    tail: Tail,
    span: Span,
    branches: Sequence[Branch],
    *,
    num_steps: int,
    residuals: Sequence[Tensor] = (),
    padding: int = 0,
    keep: bool = False,
) -> tuple[Tensor | None, Tensor]:
    """Bias, mask, residuals, activation and mirrored padding.

    Args:
        tail: bias, scales and slope.
        span: the audio's lengths.
        branches: outputs of 1 to 3 convolutions.
        num_steps: T.
        residuals: 0 to 3 of [B, T, C].
        padding: steps p mirrored at each end; fewer than there are.
        keep: whether x itself is wanted too.

    Returns:
        x [B, T, C] if `keep`, and its activation padded [B, T + 2 * p, C], zero behind the mirrored end. Sums are
        taken in float32; what the dtype can't hold becomes its largest number.
    """
    if branches[0].output_BTC.is_cuda:
        from s2s_model.codecs.conv_tail_triton import conv_tail_cuda

        return conv_tail_cuda(tail, span, branches, num_steps, residuals, padding, keep)
    return conv_tail_reference(tail, span, branches, num_steps, residuals, padding, keep)


def conv_tail_reference(
    tail: Tail,
    span: Span,
    branches: Sequence[Branch],
    num_steps: int,
    residuals: Sequence[Tensor],
    padding: int,
    keep: bool,
) -> tuple[Tensor | None, Tensor]:
    """`conv_tail` in plain torch, for the CPU."""
    dtype = branches[0].output_BTC.dtype
    pieces = (branch.output_BTC[:, branch.offset : branch.offset + num_steps].float() for branch in branches)
    x_BTC = sum(pieces, start=torch.zeros(())) * tail.scale + tail.bias_C
    step_T = torch.arange(num_steps, device=x_BTC.device)
    x_BTC = x_BTC.where((step_T < span.frames_B[:, None] * tail.steps_per_frame)[..., None], 0.0)
    if residuals:
        x_BTC = x_BTC + tail.residual_scale * sum(residual.float() for residual in residuals)
    largest = torch.finfo(dtype).max
    x_BTC = x_BTC.clamp(-largest, largest)
    padded_BTC = mirror_pad(leaky_relu(x_BTC, tail.slope), span.end_1 * tail.steps_per_frame, padding)
    return (x_BTC.to(dtype) if keep else None), padded_BTC.to(dtype)


def mirror_pad(x_BTC: Tensor, end_1: Tensor, padding: int, extra: int = 0) -> Tensor:
    """Mirror `padding` steps at the start and at `end_1`, a step on the device: [B, T + 2 * padding + extra, C].

    What follows is zero. It is `torch.nn.functional.pad` in mode "reflect" for a batch that lies in a longer buffer.
    """
    num_steps = x_BTC.shape[1]
    position_T = torch.arange(num_steps + 2 * padding + extra, device=x_BTC.device) - padding
    source_T = position_T.abs()
    source_T = source_T.where(source_T < end_1, 2 * (end_1 - 1) - source_T)
    is_there_T = (position_T < end_1 + padding) & (source_T >= 0) & (source_T < num_steps)
    picked_BTC = x_BTC[:, source_T.clamp(0, num_steps - 1)]
    return picked_BTC.where(is_there_T[:, None], 0.0)
