"""NeMo's `HiFiGANEncoder` and `HiFiGANDecoder`, computed faster from the same weights.

On a GPU NeMo's own modules spend most of their time in passes over memory between the convolutions. Here these are one
part of the convolutions (convolution.py), which read their input as it lies, and float16 halves all bytes.
float16 rounds as TF32 does, with which cuDNN runs float32 convolutions anyway: both keep 10 bits.

Shapes: `B` batch, `S` samples, `T` frames, `D` latents of a frame, `C` channels.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s2s_model.codecs.convolution import MULTIPLE, Conv, Ending, Span, convolve, fold, mirror_pad
from s2s_model.codecs.hifigan_parts import ResLayer


class HiFiGANEncoder:
    """Audio to latents, as NeMo's `HiFiGANEncoder` does."""

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        slope = encoder.post_activation.activation.negative_slope
        steps = prod(encoder.down_sample_rates)
        # One channel in: its windows are the channels of a convolution of one tap.
        first = fold(encoder.pre_conv.conv, dtype)
        taps_1KC = first.weight_KIO[:, 0][None]
        self._first_padding = first.padding
        taps_1KC = pad(taps_1KC, (0, 0, 0, -taps_1KC.shape[1] % MULTIPLE))
        self._first = first._replace(weight_KIO=taps_1KC, padding=0)
        self._layers: list[tuple[Ending, ResLayer, Conv]] = []
        for layer, down in zip(encoder.res_layers, encoder.down_sample_conv_layers, strict=True):
            conv = fold(down.conv, dtype)
            self._layers.append((Ending(steps, slope), ResLayer(layer, dtype, steps, slope), conv))
            steps //= conv.stride
        self._ending, self._last = Ending(steps, slope), fold(encoder.post_conv.conv, dtype, multiple=1)

    def __call__(self, audio_BS: Tensor, span: Span) -> Tensor:
        """Latents [B, D, T] float32 of whole frames of audio; what lies behind `span.end_1` has no meaning."""
        samples_per_frame = self._layers[0][0].steps_per_frame
        num_frames = audio_BS.shape[1] // samples_per_frame
        x_BTC = self._windows(audio_BS.to(self._dtype), span.end_1 * samples_per_frame)
        conv = self._first
        for ending, layer, down in self._layers:
            made = convolve(conv, ending, span, x_BTC, num_frames * ending.steps_per_frame, keep=True)
            x_BTC, conv = layer(made, span), down
        x_BTC = convolve(conv, self._ending, span, x_BTC, num_frames).active_BTC
        made = convolve(
            self._last, self._ending, span, x_BTC, num_frames, keep=True, activate=False, dtype=torch.float32
        )
        return made.kept_BTC.transpose(1, 2)

    def _windows(self, audio_BS: Tensor, end_1: Tensor) -> Tensor:
        """The samples around each sample [B, S, K]."""
        width = self._first.weight_KIO.shape[1]
        extra = width - 1 - 2 * self._first_padding
        padded_BS = mirror_pad(audio_BS[..., None], end_1, self._first_padding, extra)[..., 0]
        return padded_BS.unfold(1, width, 1)


class HiFiGANDecoder:
    """Latents to audio, as NeMo's `HiFiGANDecoder` does."""

    def __init__(self, decoder: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        slope = decoder.post_activation.activation.negative_slope
        steps = 1
        self._first, self._first_ending = fold(decoder.pre_conv.conv, dtype), Ending(steps, slope)
        self._layers: list[tuple[Conv, Ending, ResLayer]] = []
        for layer, up in zip(decoder.res_layers, decoder.up_sample_conv_layers, strict=True):
            conv = fold(up.conv, dtype)
            steps *= conv.stride
            self._layers.append((conv, Ending(steps, slope), ResLayer(layer, dtype, steps, slope)))
        self._last, self._last_ending = fold(decoder.post_conv.conv, dtype, multiple=1), Ending(steps, slope)
        self._bound = decoder.out_activation

    def __call__(self, latents_BDT: Tensor, span: Span) -> Tensor:
        """Audio [B, S] float32 in [-1, 1]; what lies behind `span.end_1` has no meaning."""
        num_steps = latents_BDT.shape[2]
        latents_BTD = latents_BDT.to(self._dtype).transpose(1, 2)
        latents_BTD = pad(latents_BTD, (0, -latents_BTD.shape[2] % MULTIPLE)).contiguous()
        active_BTC = convolve(self._first, self._first_ending, span, latents_BTD, num_steps).active_BTC
        for up, ending, layer in self._layers:
            num_steps *= up.stride
            active_BTC = layer(convolve(up, ending, span, active_BTC, num_steps, keep=True), span)
        made = convolve(
            self._last, self._last_ending, span, active_BTC, num_steps, keep=True, activate=False, dtype=torch.float32
        )
        bounded: Tensor = self._bound(made.kept_BTC[..., 0])
        return bounded


def reason_against(encoder: Any, decoder: Any) -> str | None:
    """Why these modules of a NeMo codec can't be computed here; None if they can."""
    from nemo.collections.tts.modules import audio_codec_modules as nemo

    for module, wanted in ((encoder, nemo.HiFiGANEncoder), (decoder, nemo.HiFiGANDecoder)):
        if type(module) is not wanted:
            return f"{type(module).__name__} isn't {wanted.__name__}"
        for part in module.modules():
            if isinstance(part, nemo.CodecActivation) and not isinstance(part.activation, nn.LeakyReLU):
                return f"its activation is {type(part.activation).__name__}, not LeakyReLU"
            if isinstance(part, nn.Conv1d) and part.padding_mode != "reflect":
                return f"its pad_mode is {part.padding_mode}, not reflect"
            if isinstance(part, nn.Conv1d | nn.ConvTranspose1d) and part.groups != 1:
                return "its convolutions are grouped"
    return None
