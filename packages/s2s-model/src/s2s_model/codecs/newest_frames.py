"""The last frames of NeMo's causal `ResNetDecoder`, without computing what is before them anew.

A live session decodes one frame at a time, and each depends on frames before it: eleven, for the demo's codec. But the
layers at the rate of samples, where most of the work is, look back a few samples only. Here each layer computes what
the layers behind it need. The newest of twelve frames took 77 ms on one core when all were decoded, and takes 31 ms;
a second stream beside it takes 4 ms more.

Shapes: `B` batch, `S` samples, `T` frames, `D` latents of a frame, `X` steps at the rate of a layer.
"""

from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Layer(NamedTuple):
    """A part of the decoder."""

    module: Any
    stride: int  # steps of its output for one of its input
    context: int  # steps of its input, before the one at hand, that a step of its output depends on


class NewestFrames:
    """Decodes the last frames of sequences; `decoder` is NeMo's, and stays as it is."""

    @torch.inference_mode(False)
    def __init__(self, decoder: Any) -> None:
        decoder = deepcopy(decoder)
        for module in list(decoder.modules()):
            conv = getattr(module, "conv", None)
            if conv is not None and parametrize.is_parametrized(conv):
                module.conv = _without_weight_norm(conv)
        self._layers = _layers(decoder)
        self._bound = decoder.out_activation

    @torch.no_grad()
    def __call__(self, latents_BDT: Tensor, num_frames: int) -> Tensor:
        """Audio [B, S] of the last `num_frames` frames, as the decoder gives it for whole sequences."""
        x_BDX = latents_BDT
        for layer, needed in zip(self._layers, self._needed(num_frames), strict=True):
            x_BDX = x_BDX[..., -needed:]
            num_steps = torch.full((len(x_BDX),), x_BDX.shape[-1] * layer.stride, device=x_BDX.device)
            x_BDX = layer.module(inputs=x_BDX, input_len=num_steps)
        audio_BS: Tensor = self._bound(x_BDX[:, 0])
        return audio_BS[:, -num_frames * self._samples_per_frame :]

    @property
    def _samples_per_frame(self) -> int:
        samples = 1
        for layer in self._layers:
            samples *= layer.stride
        return samples

    def _needed(self, num_frames: int) -> list[int]:
        """For each layer, the last steps of its input that the audio depends on."""
        steps = num_frames * self._samples_per_frame
        needed = []
        for layer in reversed(self._layers):
            steps = -(-steps // layer.stride) + layer.context
            needed.append(steps)
        return needed[::-1]


def newest_frames(decoder: Any) -> NewestFrames | None:
    """The way to decode the last frames of `decoder` alone; None if it isn't a causal `ResNetDecoder`."""
    from nemo.collections.tts.modules.audio_codec_modules import CausalConv1dNorm, ResNetDecoder

    if type(decoder) is not ResNetDecoder or not isinstance(decoder.pre_conv, CausalConv1dNorm):
        return None
    return NewestFrames(decoder)


def _layers(decoder: Any) -> list[Layer]:
    """In the order of `ResNetDecoder.forward`."""
    modules = [decoder.pre_conv]
    for block, up in zip(decoder.pre_resblocks, decoder.pre_up_sample_layers, strict=True):
        modules += [block, up]
    modules += decoder.conv_layers
    for up, block in zip(decoder.resblock_up_sample_layers, decoder.resblocks, strict=True):
        modules += [up, block]
    return [_layer(module) for module in [*modules, decoder.post_conv]]


def _without_weight_norm(conv: Any) -> nn.Module:
    """The same convolution, whose weight isn't computed anew in each call.

    torch's `remove_parametrizations` would take it from the class, which the decoder itself shares.
    """
    kind = nn.ConvTranspose1d if isinstance(conv, nn.ConvTranspose1d) else nn.Conv1d
    plain = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=conv.bias is not None,
        dilation=conv.dilation,
    )
    with torch.no_grad():
        plain.weight.copy_(conv.weight)
        if plain.bias is not None:
            plain.bias.copy_(conv.bias)
    return plain.requires_grad_(False)


def _layer(module: nn.Module) -> Layer:
    stride, context = 1, 0
    for conv in module.modules():
        if isinstance(conv, nn.ConvTranspose1d):
            stride = conv.stride[0]
            context += -(-conv.kernel_size[0] // stride) - 1
        elif isinstance(conv, nn.Conv1d):
            context += (conv.kernel_size[0] - 1) * conv.dilation[0]
    return Layer(module, stride, context)
