"""The convolutions of NeMo's HiFi-GAN, their weight norm folded, as tensor cores like them.

A Conv1d turns its input around before and after each call, since tensor cores read channels last. Here all tensors are
[B, T, C] from the start, and a convolution is one of images one pixel high. Channels are filled up with zeros to a
multiple of 16: 27 of them take longer than 32.

Shapes: `B` batch, `T` steps at the rate of a layer, `C` channels, `p` steps of padding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, pad

from s2s_model.codecs.conv_tail import Branch, Span, Tail, conv_tail

MULTIPLE = 16


class Conv:
    """A convolution; its bias is left to the `Tail` behind it.

    Attributes:
        bias_C: float32.
        padding: steps p that it wants mirrored at each end of its input.
        stride: steps of the input for one of the output (for one of the input, if transposed).
    """

    def __init__(self, conv: nn.Conv1d | nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        self._transposed = isinstance(conv, nn.ConvTranspose1d)
        self.stride, self.dilation, self.padding = conv.stride[0], conv.dilation[0], int(conv.padding[0])
        self._trimmed, self._more = (0, 0)
        if self._transposed:
            self._trimmed, self._more, self.padding = self.padding, conv.output_padding[0], 0
        weight = conv.weight.detach().float()
        rows, columns = (_missing(size) for size in weight.shape[:2])
        weight = pad(weight, (0, 0, 0, columns, 0, rows))
        self.weight = weight.to(dtype)[:, :, None].contiguous(memory_format=torch.channels_last)
        bias_C = conv.bias.detach().float() if conv.bias is not None else weight.new_zeros(conv.out_channels)
        self.bias_C = pad(bias_C, (0, _missing(len(bias_C)))).contiguous()

    def __call__(self, x_BTC: Tensor) -> Tensor:
        """What the convolution makes of its padded input, without its bias."""
        image = x_BTC.transpose(1, 2)[:, :, None]
        if self._transposed:
            made = conv_transpose2d(
                image, self.weight, None, (1, self.stride), (0, self._trimmed), (0, self._more), 1, (1, self.dilation)
            )
        else:
            made = conv2d(image, self.weight, None, (1, self.stride), 0, (1, self.dilation))
        return made[:, :, 0].transpose(1, 2).contiguous()  # a copy only where the backend gave another layout


class ResLayer:
    """NeMo's `HiFiGANResLayer`: the mean of residual blocks, each of pairs of convolutions."""

    def __init__(self, layer: Any, dtype: torch.dtype, steps_per_frame: int, slope: float) -> None:
        pairs = [
            [(Conv(pair.input_conv.conv, dtype), Conv(pair.skip_conv.conv, dtype)) for pair in block.res_blocks]
            for block in layer.res_blocks
        ]
        self._pairs = pairs
        self.padding = max(block[0][0].padding for block in pairs)
        self._inner = [
            [tuple(Tail(conv.bias_C, steps_per_frame, slope) for conv in pair) for pair in block] for block in pairs
        ]
        share = 1 / len(pairs)
        bias_C = torch.stack([block[-1][1].bias_C for block in pairs]).mean(dim=0)
        # With one pair a block, the residuals of all blocks are the same.
        self._chained = any(len(block) > 1 for block in pairs)
        self._last = Tail(bias_C, steps_per_frame, slope, share, share if self._chained else 1.0)

    def __call__(self, x_BTC: Tensor, padded_BTC: Tensor, span: Span, padding: int) -> Tensor:
        """`x_BTC`, and its activation padded by `self.padding`; returns the padded activation of what it makes."""
        num_steps = x_BTC.shape[1]
        ends: list[Branch] = []
        residuals: list[Tensor] = []
        for pairs, tails in zip(self._pairs, self._inner, strict=True):
            end, residual = self._block(pairs, tails, x_BTC, padded_BTC, span)
            ends.append(end)
            residuals.append(residual)
        if not self._chained:
            residuals = [x_BTC]
        return conv_tail(self._last, span, ends, num_steps=num_steps, residuals=residuals, padding=padding)[1]

    def _block(
        self,
        pairs: Sequence[tuple[Conv, Conv]],
        tails: Sequence[tuple[Tail, ...]],
        x_BTC: Tensor,
        padded_BTC: Tensor,
        span: Span,
    ) -> tuple[Branch, Tensor]:
        """The last convolution's output, and the residual that belongs to it."""
        num_steps, margin = x_BTC.shape[1], self.padding
        for i, ((first, second), (behind_first, behind_second)) in enumerate(zip(pairs, tails, strict=True)):
            middle = Branch(first(padded_BTC), margin - first.padding)
            _, padded_BTC = conv_tail(behind_first, span, [middle], num_steps=num_steps, padding=second.padding)
            end = Branch(second(padded_BTC))
            if i + 1 < len(pairs):
                margin = pairs[i + 1][0].padding
                kept, padded_BTC = conv_tail(
                    behind_second, span, [end], num_steps=num_steps, residuals=[x_BTC], padding=margin, keep=True
                )
                assert kept is not None
                x_BTC = kept
        return end, x_BTC


def _missing(num_channels: int) -> int:
    return -num_channels % MULTIPLE
