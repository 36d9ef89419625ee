"""The residual layers of NeMo's HiFi-GAN, by `convolve`.

Shapes: `B` batch, `T` steps at the rate of a layer, `C` channels.
"""

from typing import Any

import torch
from torch import Tensor

from s2s_model.codecs.convolution import Conv, Ending, Made, Span, convolve, fold


class ResLayer:
    """NeMo's `HiFiGANResLayer`: the mean of residual blocks, each of pairs of convolutions."""

    def __init__(self, layer: Any, dtype: torch.dtype, steps_per_frame: int, slope: float) -> None:
        self._blocks: list[list[tuple[Conv, Conv]]] = [
            [(fold(pair.input_conv.conv, dtype), fold(pair.skip_conv.conv, dtype)) for pair in block.res_blocks]
            for block in layer.res_blocks
        ]
        share = 1 / len(self._blocks)
        self._inner = Ending(steps_per_frame, slope)
        self._last = Ending(steps_per_frame, slope, share, share)
        for block in self._blocks:
            first, second = block[-1]
            block[-1] = (first, second._replace(bias_C=second.bias_C * share))

    def __call__(self, made: Made, span: Span) -> Tensor:
        """The activation of what the layer makes of x and its activation."""
        num_steps = made.kept_BTC.shape[1]
        mean_BTC: Tensor | None = None
        for i, block in enumerate(self._blocks):
            kept_BTC, active_BTC = made
            for first, second in block[:-1]:
                active_BTC = self._first(first, span, active_BTC)
                kept_BTC, active_BTC = convolve(
                    second, self._inner, span, active_BTC, num_steps, residual_BTC=kept_BTC, keep=True
                )
            first, second = block[-1]
            is_last = i + 1 == len(self._blocks)
            mean_BTC, active_BTC = convolve(
                second,
                self._last,
                span,
                self._first(first, span, active_BTC),
                num_steps,
                residual_BTC=kept_BTC,
                partial_BTC=mean_BTC,
                keep=not is_last,
                activate=is_last,
            )
        return active_BTC

    def _first(self, conv: Conv, span: Span, active_BTC: Tensor) -> Tensor:
        return convolve(conv, self._inner, span, active_BTC, active_BTC.shape[1]).active_BTC
