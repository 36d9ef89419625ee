"""A FastConformer's first convolutions, without the largest tensors of a training step.

NeMo's `dw_striding`: a convolution of the features with one input channel, then depthwise and pointwise ones in turn,
each depthwise one halving time and features. What the first makes is four times as large as what follows. Here it is
never stored: each of its values is nine products, done where the depthwise convolution needs them, and again for
gradients. All else lies channels last, so that pointwise convolutions are matrix products.

Shapes: `B` batch, `T` frames and `F` features of a stage, `C` channels, `P` taps of a kernel (9).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad, relu

from s2s_parallel.forwards import wrap_forward

KERNEL, STRIDE = 3, 2


def subsample_channels_last(encoder: Any) -> bool:
    """Let a NeMo encoder's `ConvSubsampling` do so, in place, if it is of this kind; return whether it is."""
    from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling

    subsampling: Any = getattr(encoder, "pre_encode", None)
    fits = (
        type(subsampling) is ConvSubsampling
        and subsampling._subsampling == "dw_striding"
        and subsampling._sampling_num > 1
        and subsampling.subsampling_conv_chunking_factor in (-1, 1)
        and all(isinstance(layer, nn.ReLU) for layer in list(subsampling.conv)[1::3])
    )
    if fits:
        wrap_forward(subsampling, _subsample)
    return fits


def _subsample(forward: Callable[..., Any], x: Tensor, lengths: Tensor) -> Any:
    """In place of NeMo's forward: features x [B, T, F] of `lengths` [B] to [B, T / 2 ** n, out], and lengths [B]."""
    if x.requires_grad:  # nothing before has weights; and who asks anyway gets it
        return forward(x, lengths)
    subsampling: Any = forward.args[0]  # type: ignore[attr-defined]
    layers = list(subsampling.conv)
    left, right = subsampling._left_padding, subsampling._right_padding
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype

    def cast(layer: Any) -> tuple[Tensor, Tensor]:
        return layer.weight.to(dtype), layer.bias.to(dtype)

    lens_B = lengths.long()
    x_BTF = x.to(dtype).where(_within(x.shape[1], lens_B), 0)
    first, second, lens_B = layers[0], layers[2], _halved(lens_B, left + right)
    x_BTFC = convolve_twice(x_BTF, lens_B, *cast(first), *cast(second), left, right)
    lens_B = _halved(lens_B, left + right)
    for i in range(3, len(layers), 3):
        x_BTFC = linear(x_BTFC, layers[i].weight[..., 0, 0], layers[i].bias)
        if i + 2 < len(layers):
            x_BTFC = convolve_depthwise(x_BTFC, lens_B, *cast(layers[i + 2]), left, right)
            lens_B = _halved(lens_B, left + right)
    x_BTFC = relu(x_BTFC).where(_within(x_BTFC.shape[1], lens_B)[..., None], 0)
    out: Any = subsampling.out
    weight_OFC = out.weight.unflatten(1, (layers[0].out_channels, -1)).transpose(1, 2)
    return linear(x_BTFC.flatten(2), weight_OFC.flatten(1), out.bias), lens_B


def _halved(size: Any, padding: int) -> Any:
    """Length of what a convolution of this stride makes."""
    return (size + padding - KERNEL) // STRIDE + 1


def _within(num_frames: int, lens_B: Tensor) -> Tensor:
    """True within a recording [B, T, 1]."""
    return (torch.arange(num_frames, device=lens_B.device) < lens_B[:, None])[..., None]


def convolve_twice(
    x_BTF: Tensor,
    lens_B: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    left: int,
    right: int,
) -> Tensor:
    """A convolution of one channel, ReLU, and a depthwise one, both of kernel 3 and stride 2: [B, T / 4, F / 4, C].

    Args:
        x_BTF: features; it gets no gradient.
        lens_B: frames behind the first convolution; what follows is zero before the second.
        weight_1: [C, 1, 3, 3], as `weight_2`; biases are [C].
        left: zeros before the first frame and feature, as `right` behind the last.
    """
    if x_BTF.is_cuda:
        from s2s_model.perception.subsampling_triton import convolve_twice_cuda

        twice: Tensor = convolve_twice_cuda(x_BTF, lens_B, weight_1, bias_1, weight_2, bias_2, left, right)
        return twice
    x_BCTF = conv2d(pad(x_BTF[:, None], (left, right, left, right)), weight_1, bias_1, stride=STRIDE)
    return _depthwise(x_BCTF, lens_B, weight_2, bias_2, left, right)


def convolve_depthwise(x_BTFC: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int) -> Tensor:
    """ReLU, then a depthwise convolution of kernel 3 and stride 2: [B, T / 2, F / 2, C].

    Args:
        x_BTFC: before the ReLU; what lies behind `lens_B` frames is taken as zero.
        lens_B: frames of each recording.
        weight: [C, 1, 3, 3]; the bias is [C].
        left: zeros before the first frame and feature, as `right` behind the last.
    """
    if x_BTFC.is_cuda:
        from s2s_model.perception.subsampling_triton import convolve_depthwise_cuda

        convolved: Tensor = convolve_depthwise_cuda(x_BTFC, lens_B, weight, bias, left, right)
        return convolved
    return _depthwise(x_BTFC.permute(0, 3, 1, 2), lens_B, weight, bias, left, right)


def _depthwise(x_BCTF: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int) -> Tensor:
    x_BCTF = relu(x_BCTF).where(_within(x_BCTF.shape[2], lens_B)[:, None], 0)
    padded = pad(x_BCTF, (left, right, left, right))
    return conv2d(padded, weight, bias, stride=STRIDE, groups=len(weight)).permute(0, 2, 3, 1)
