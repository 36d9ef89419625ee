"""A Conformer's convolutions of kernel size 1 as what they are: matrix products.

As convolutions they need the features transposed, and run on slow kernels in bf16. So does the depthwise one between
them, which has kernels of its own on a GPU.

Shapes: `B` batch, `T` frames, `C` channels.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn.functional import glu, linear

from s2s_parallel.forwards import wrap_forward


def multiply_pointwise(encoder: Any) -> None:
    """Let the layers of a NeMo `ConformerEncoder` do so, in place."""
    from nemo.collections.asr.parts.submodules.conformer_modules import ConformerConvolution

    for layer in getattr(encoder, "layers", []):
        convolution: Any = getattr(layer, "conv", None)
        if type(convolution) is ConformerConvolution and convolution.pointwise_activation == "glu_":
            wrap_forward(convolution, _convolve)


def _convolve(
    forward: Callable[..., Any], x: Tensor, pad_mask: Tensor | None = None, cache: Tensor | None = None
) -> Any:
    """In place of NeMo's forward: x [B, T, C], `pad_mask` [B, T] True beyond a recording's end."""
    if cache is not None:
        return forward(x, pad_mask=pad_mask, cache=cache)
    convolution: Any = forward.args[0]  # type: ignore[attr-defined]
    x_BTC = glu(_linear(convolution.pointwise_conv1, x), dim=-1)
    if pad_mask is not None:
        x_BTC = x_BTC.masked_fill(pad_mask[..., None], 0.0)
    x_BTC = _depthwise(convolution.depthwise_conv, x_BTC)
    if convolution.norm_type == "layer_norm":
        x_BTC = convolution.batch_norm(x_BTC)
    else:
        x_BTC = convolution.batch_norm(x_BTC.transpose(1, 2)).transpose(1, 2)
    return _linear(convolution.pointwise_conv2, convolution.activation(x_BTC))


def _depthwise(convolution: Any, x_BTC: Tensor) -> Tensor:
    if not x_BTC.is_cuda:
        x_BCT: Tensor = convolution(x_BTC.transpose(1, 2))
        return x_BCT.transpose(1, 2)
    from s2s_model.perception.depthwise_triton import convolve_over_time

    weight, bias = convolution.weight, convolution.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    convolved: Tensor = convolve_over_time(x_BTC, weight.to(x_BTC), bias.to(x_BTC), convolution._left_padding)
    return convolved


def _linear(convolution: Any, x_BTC: Tensor) -> Tensor:
    return linear(x_BTC, convolution.weight[..., 0], convolution.bias)
