"""A convolution of a HiFi-GAN with all that lies between it and the next: one pass over memory.

Shapes: `B` batch, `T` steps of the output at the rate of a layer, `C` channels, `K` taps. All tensors are [B, T, C], so
that the tensor cores can read them as they lie.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, leaky_relu, pad

MULTIPLE = 16  # channels are filled up with zeros to one of it: 27 of them take longer than 32


class Span(NamedTuple):
    """How much of a batch is audio; both in frames of the codec, on the device."""

    frames_B: Tensor  # int64, of each example; what follows is zero
    end_1: Tensor  # int64 [1], where the batch ends: there padding mirrors


class Conv(NamedTuple):
    """A convolution, its weight norm folded.

    A transposed one is a convolution too: at each step of its input it makes `stride` steps of the output side by side.
    """

    weight_KIO: Tensor  # [taps, channels in, channels out]; transposed: [taps, in, stride * out], last tap first heard
    bias_C: Tensor  # float32
    stride: int  # steps of the input for one of the output; transposed: the other way round
    dilation: int
    padding: int  # steps mirrored at each end of the input; transposed: steps of the output cut off at its start
    transposed: bool


class Ending(NamedTuple):
    """What becomes of a convolution's sums.

    x = (scale * sums + bias, zero behind an example's end) + residual_scale * residual + partial.
    """

    steps_per_frame: int
    slope: float  # of the leaky ReLU for negative values
    scale: float = 1.0
    residual_scale: float = 1.0


class Call(NamedTuple):
    """The arguments of `convolve`."""

    conv: Conv
    ending: Ending
    span: Span
    input_BTC: Tensor
    num_steps: int
    residual_BTC: Tensor | None
    partial_BTC: Tensor | None
    keep: bool
    activate: bool
    dtype: torch.dtype


class Made(NamedTuple):
    """x and its activation [B, T, C], zero behind the batch's end; empty where it wasn't asked for."""

    kept_BTC: Tensor
    active_BTC: Tensor


def fold(conv: nn.Conv1d | nn.ConvTranspose1d, dtype: torch.dtype, multiple: int = MULTIPLE) -> Conv:
    """What `convolve` takes; channels out are filled up to a multiple of `multiple`, those in to one of `MULTIPLE`."""
    weight = conv.weight.detach().float()
    transposed = isinstance(conv, nn.ConvTranspose1d)
    weight_KIO = weight.permute(2, 0, 1) if transposed else weight.permute(2, 1, 0)
    K, channels_in, C = weight_KIO.shape
    weight_KIO = pad(weight_KIO, (0, -C % multiple, 0, -channels_in % MULTIPLE))
    stride = conv.stride[0]
    if transposed:
        weight_KIO = pad(weight_KIO, (0, 0, 0, 0, 0, -K % stride))
        weight_KIO = weight_KIO.unflatten(0, (-1, stride)).transpose(1, 2).flatten(2)
    bias_C = conv.bias.detach().float() if conv.bias is not None else weight.new_zeros(C)
    return Conv(
        weight_KIO.to(dtype).contiguous(),
        pad(bias_C, (0, -C % multiple)).contiguous(),
        stride,
        conv.dilation[0],
        int(conv.padding[0]),
        transposed,
    )


def convolve(
    conv: Conv,
    ending: Ending,
    span: Span,
    input_BTC: Tensor,
    num_steps: int,
    *,
    residual_BTC: Tensor | None = None,
    partial_BTC: Tensor | None = None,
    keep: bool = False,
    activate: bool = True,
    dtype: torch.dtype | None = None,
) -> Made:
    """Convolve, add bias and residuals, mask, activate.

    Args:
        conv: the convolution.
        ending: what becomes of its sums.
        span: the audio's lengths.
        input_BTC: [B, steps in, channels in], its last dimension contiguous.
        num_steps: T.
        residual_BTC: [B, T, C].
        partial_BTC: [B, T, C]; it may be written over.
        keep: whether x is wanted.
        activate: whether its activation is.
        dtype: of both; by default the input's.

    Returns:
        Sums are taken in float32; what the dtype can't hold becomes its largest number.
    """
    dtype = dtype or input_BTC.dtype
    call = Call(conv, ending, span, input_BTC, num_steps, residual_BTC, partial_BTC, keep, activate, dtype)
    if input_BTC.is_cuda:
        from s2s_model.codecs.convolution_triton import convolve_cuda

        return convolve_cuda(call)
    return convolve_reference(call)


def convolve_reference(call: Call) -> Made:
    """`convolve` in plain torch, for the CPU."""
    conv, ending, span, input_BTC, num_steps, residual_BTC, partial_BTC, keep, activate, dtype = call
    step_T1 = torch.arange(num_steps, device=input_BTC.device)[:, None]
    end_1, end_B11 = (frames * ending.steps_per_frame for frames in (span.end_1, span.frames_B[:, None, None]))
    sums_BTC = _sums(conv, input_BTC, end_1, num_steps).float()
    x_BTC = (sums_BTC * ending.scale + conv.bias_C).where(step_T1 < end_B11, 0.0)
    if residual_BTC is not None:
        x_BTC = x_BTC + ending.residual_scale * residual_BTC.float()
    if partial_BTC is not None:
        x_BTC = x_BTC + partial_BTC.float()
    largest = torch.finfo(dtype).max
    x_BTC = x_BTC.clamp(-largest, largest).where(step_T1 < end_1, 0.0)
    active_BTC = leaky_relu(x_BTC, ending.slope)
    nothing = input_BTC.new_empty(0)
    return Made(x_BTC.to(dtype) if keep else nothing, active_BTC.to(dtype) if activate else nothing)


def _sums(conv: Conv, input_BTC: Tensor, end_1: Tensor, num_steps: int) -> Tensor:
    taps, _, columns = conv.weight_KIO.shape
    if not conv.transposed:
        padded_BTC = mirror_pad(input_BTC, end_1 * conv.stride, conv.padding)
        weight = conv.weight_KIO.permute(2, 1, 0)
        return conv1d(padded_BTC.transpose(1, 2), weight, None, conv.stride, 0, conv.dilation).transpose(1, 2)
    padded_BTC = pad(input_BTC, (0, 0, taps - 1, taps - 1))
    sums_BTC = conv1d(padded_BTC.transpose(1, 2), conv.weight_KIO.flip(0).permute(2, 1, 0)).transpose(1, 2)
    sums_BTC = sums_BTC.reshape(len(sums_BTC), -1, columns // conv.stride)
    return sums_BTC[:, conv.padding : conv.padding + num_steps]


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
