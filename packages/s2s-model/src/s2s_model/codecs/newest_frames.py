"""The last frames of NeMo's causal `ResNetDecoder`, without computing what is before them anew.

A live session decodes one frame at a time, and each depends on frames before it: eleven, for the demo's codec. But the
layers at the rate of samples, where most of the work is, look back a few samples only. Here each layer computes what
the layers behind it need, by the plain operations of NeMo's modules, and weight norm is applied once. The newest of
twelve frames took 77 ms on one core as the end of all. What lies before a sequence's first frame is zeros to each
convolution, so sequences of different lengths, padded in front, are decoded at once.

Shapes: `B` batch, `S` samples, `T` frames, `D` latents of a frame, `X` steps at the rate of a layer.
"""

from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv_transpose1d, pad


class Layer(Protocol):
    """A part of the decoder: `stride` steps of its output for one of its input.

    A step of the output depends on `context` steps of the input before the one at hand.
    """

    stride: int
    context: int

    def __call__(self, x_BDX: Tensor, valid_B1X: Tensor | None) -> Tensor:
        """Compute it; what is before the input, or isn't valid of it, is taken as zeros."""
        ...


class Conv:
    """NeMo's `CausalConv1dNorm`."""

    def __init__(self, module: Any) -> None:
        conv = module.conv
        assert conv.stride == (1,), "NeMo's decoder has none with a stride"
        self.stride, self.context = 1, (conv.kernel_size[0] - 1) * conv.dilation[0]
        self._weight, self._bias = conv.weight.detach(), conv.bias
        self._dilation, self._groups, self._activation = conv.dilation, conv.groups, module.activation

    def __call__(self, x_BDX: Tensor, valid_B1X: Tensor | None) -> Tensor:
        """The convolution and its activation."""
        x_BDX = pad(_only(x_BDX, valid_B1X), (self.context, 0))
        made: Tensor = self._activation(conv1d(x_BDX, self._weight, self._bias, 1, 0, self._dilation, self._groups))
        return made


class Up:
    """NeMo's `CausalConvTranspose1dNorm`."""

    def __init__(self, module: Any) -> None:
        conv = module.conv
        self.stride = conv.stride[0]
        self.context = -(-conv.kernel_size[0] // self.stride) - 1
        self._weight, self._bias, self._groups = conv.weight.detach(), conv.bias, conv.groups
        self._left, self._activation = module.padding_left, module.activation

    def __call__(self, x_BDX: Tensor, valid_B1X: Tensor | None) -> Tensor:
        """The transposed convolution, cut to its length, and its activation."""
        made = conv_transpose1d(_only(x_BDX, valid_B1X), self._weight, self._bias, self.stride, 0, 0, self._groups)
        cut: Tensor = self._activation(made[..., self._left : self._left + x_BDX.shape[-1] * self.stride])
        return cut


class Block:
    """NeMo's `ResidualBlockV2`."""

    def __init__(self, module: Any) -> None:
        self._first, self._second = Conv(module.input_conv), Conv(module.skip_conv)
        self.stride, self.context = 1, self._first.context + self._second.context
        self._activation = module.output_activation

    def __call__(self, x_BDX: Tensor, valid_B1X: Tensor | None) -> Tensor:
        """Two convolutions beside the way past them."""
        made: Tensor = self._activation(x_BDX + self._second(self._first(x_BDX, valid_B1X), valid_B1X))
        return made


def _only(x_BDX: Tensor, valid_B1X: Tensor | None) -> Tensor:
    return x_BDX if valid_B1X is None else x_BDX * valid_B1X


class NewestFrames:
    """Decodes the last frames of sequences; `decoder` is NeMo's, and stays as it is."""

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, decoder: Any) -> None:
        self._layers = _layers(decoder)
        self._samples_per_frame = prod(layer.stride for layer in self._layers)
        self._bound = decoder.out_activation

    @torch.no_grad()
    def __call__(self, latents_BDT: Tensor, num_frames: int, newest_B: Tensor | None = None) -> Tensor:
        """Audio [B, S] of the last `num_frames` frames, as the decoder gives it for whole sequences.

        Args:
            latents_BDT: of the quantizer.
            num_frames: of the audio.
            newest_B: how many frames of T each sequence has, its last ones; None: all. The audio of others is silence.
        """
        x_BDX, steps = latents_BDT, 1  # of a frame
        for layer, needed in zip(self._layers, self._needed(num_frames), strict=True):
            x_BDX = x_BDX[..., -needed:]
            x_BDX = layer(x_BDX, _valid(x_BDX, steps, newest_B))
            steps *= layer.stride
        audio_BS: Tensor = self._bound(_only(x_BDX, _valid(x_BDX, steps, newest_B))[:, 0])
        return audio_BS[:, -num_frames * self._samples_per_frame :]

    def _needed(self, num_frames: int) -> list[int]:
        """For each layer, the last steps of its input that the audio depends on."""
        steps = num_frames * self._samples_per_frame
        needed = []
        for layer in reversed(self._layers):
            steps = -(-steps // layer.stride) + layer.context
            needed.append(steps)
        return needed[::-1]


def _valid(x_BDX: Tensor, steps: int, newest_B: Tensor | None) -> Tensor | None:
    """Which of x are of a sequence, `steps` being a frame: 0 or 1 [B, 1, X]."""
    if newest_B is None:
        return None
    from_end_X = torch.arange(x_BDX.shape[-1], 0, -1, device=x_BDX.device)
    return (from_end_X <= newest_B[:, None, None] * steps).to(x_BDX.dtype)


def newest_frames(decoder: Any) -> NewestFrames | None:
    """The way to decode the last frames of `decoder` alone; None if it isn't a causal `ResNetDecoder`."""
    from nemo.collections.tts.modules.audio_codec_modules import CausalConv1dNorm, ResNetDecoder

    if type(decoder) is not ResNetDecoder or not isinstance(decoder.pre_conv, CausalConv1dNorm):
        return None
    return NewestFrames(decoder)


def _layers(decoder: Any) -> list[Layer]:
    """In the order of `ResNetDecoder.forward`."""
    layers: list[Layer] = [Conv(decoder.pre_conv)]
    for block, up in zip(decoder.pre_resblocks, decoder.pre_up_sample_layers, strict=True):
        layers += [Block(block), Up(up)]
    layers += [Block(block) for block in decoder.conv_layers]
    for up, block in zip(decoder.resblock_up_sample_layers, decoder.resblocks, strict=True):
        layers += [Up(up), Block(block)]
    return [*layers, Conv(decoder.post_conv)]
