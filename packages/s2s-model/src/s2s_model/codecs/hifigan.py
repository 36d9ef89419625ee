"""NeMo's `HiFiGANEncoder` and `HiFiGANDecoder`, computed faster from the same weights.

On a GPU NeMo's own modules spend most of their time in passes over memory between the convolutions. Here these are one
pass each (conv_tail.py), the convolutions read their input as it lies (hifigan_parts.py), and float16 halves all bytes.
float16 rounds as TF32 does, with which cuDNN runs float32 convolutions anyway: both keep 10 bits.

Shapes: `B` batch, `S` samples, `T` frames, `D` latents of a frame, `C` channels.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s2s_model.codecs.conv_tail import MOST_BRANCHES, Branch, Span, Tail, conv_tail, mirror_pad
from s2s_model.codecs.hifigan_parts import MULTIPLE, Conv, ResLayer


class HiFiGANEncoder:
    """Audio to latents, as NeMo's `HiFiGANEncoder` does."""

    def __init__(self, encoder: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        slope = encoder.post_activation.activation.negative_slope
        steps = prod(encoder.down_sample_rates)
        first = encoder.pre_conv.conv
        self._first_padding = int(first.padding[0])
        # One channel in: windows of 7 samples times a matrix. An even number of rows, for the tensor cores.
        taps_KC = first.weight.detach().float()[:, 0].t()
        self._taps_KC = pad(taps_KC, (0, -taps_KC.shape[1] % MULTIPLE, 0, -len(taps_KC) % 8)).to(dtype).contiguous()
        tail = Tail(pad(first.bias.detach().float(), (0, -len(first.bias) % MULTIPLE)), steps, slope)
        self._layers: list[tuple[Tail, ResLayer, Conv]] = []
        for layer, down in zip(encoder.res_layers, encoder.down_sample_conv_layers, strict=True):
            conv = Conv(down.conv, dtype)
            self._layers.append((tail, ResLayer(layer, dtype, steps, slope), conv))
            steps //= conv.stride
            tail = Tail(conv.bias_C, steps, slope)
        self._last_tail, self._last = tail, Conv(encoder.post_conv.conv, dtype)
        self._latents = int(encoder.post_conv.conv.out_channels)

    def __call__(self, audio_BS: Tensor, span: Span) -> Tensor:
        """Latents [B, D, T] float32 of whole frames of audio; what lies behind `span.end_1` has no meaning."""
        samples_per_frame = self._layers[0][0].steps_per_frame
        x_BTC = self._windows(audio_BS.to(self._dtype), span.end_1 * samples_per_frame) @ self._taps_KC
        for tail, layer, down in self._layers:
            num_steps = audio_BS.shape[1] * tail.steps_per_frame // samples_per_frame
            kept, padded = conv_tail(tail, span, [Branch(x_BTC)], num_steps=num_steps, padding=layer.padding, keep=True)
            assert kept is not None
            x_BTC = down(layer(kept, padded, span, down.padding))
        num_frames = audio_BS.shape[1] // samples_per_frame
        _, padded = conv_tail(self._last_tail, span, [Branch(x_BTC)], num_steps=num_frames, padding=self._last.padding)
        latents_BTD = (self._last(padded).float() + self._last.bias_C)[..., : self._latents]
        is_valid_BT = torch.arange(num_frames, device=audio_BS.device) < span.frames_B[:, None]
        return latents_BTD.where(is_valid_BT[..., None], 0.0).transpose(1, 2)

    def _windows(self, audio_BS: Tensor, end_1: Tensor) -> Tensor:
        """The samples around each sample [B, S, K]."""
        width = len(self._taps_KC)
        extra = width - 1 - 2 * self._first_padding
        padded_BS = mirror_pad(audio_BS[..., None], end_1, self._first_padding, extra)[..., 0]
        return padded_BS.unfold(1, width, 1)


class HiFiGANDecoder:
    """Latents to audio, as NeMo's `HiFiGANDecoder` does."""

    def __init__(self, decoder: Any, dtype: torch.dtype) -> None:
        self._dtype = dtype
        slope = decoder.post_activation.activation.negative_slope
        steps = 1
        self._first = Conv(decoder.pre_conv.conv, dtype)
        self._first_tail = Tail(self._first.bias_C, steps, slope)
        self._layers: list[tuple[Conv, Tail, ResLayer]] = []
        for layer, up in zip(decoder.res_layers, decoder.up_sample_conv_layers, strict=True):
            conv = Conv(up.conv, dtype)
            steps *= conv.stride
            self._layers.append((conv, Tail(conv.bias_C, steps, slope), ResLayer(layer, dtype, steps, slope)))
        self._last = Conv(decoder.post_conv.conv, dtype)
        self._steps_per_frame = steps
        self._bound = decoder.out_activation

    def __call__(self, latents_BDT: Tensor, span: Span) -> Tensor:
        """Audio [B, S] float32 in [-1, 1]; what lies behind `span.end_1` has no meaning."""
        num_steps = latents_BDT.shape[2]
        x_BTC = latents_BDT.to(self._dtype).transpose(1, 2)
        x_BTC = pad(x_BTC, (0, -x_BTC.shape[2] % MULTIPLE))
        x_BTC = self._first(mirror_pad(x_BTC, span.end_1, self._first.padding))
        _, active = conv_tail(self._first_tail, span, [Branch(x_BTC)], num_steps=num_steps)
        for i, (up, tail, layer) in enumerate(self._layers):
            num_steps *= up.stride
            kept, padded = conv_tail(
                tail, span, [Branch(up(active))], num_steps=num_steps, padding=layer.padding, keep=True
            )
            assert kept is not None
            is_last = i + 1 == len(self._layers)
            active = layer(kept, padded, span, self._last.padding if is_last else 0)
        audio_BS = self._last(active)[..., 0].float() + self._last.bias_C[0]
        position_S = torch.arange(num_steps, device=audio_BS.device)
        is_valid_BS = position_S < span.frames_B[:, None] * self._steps_per_frame
        bounded: Tensor = self._bound(audio_BS.where(is_valid_BS, 0.0))
        return bounded


def reason_against(encoder: Any, decoder: Any) -> str | None:
    """Why these modules of a NeMo codec can't be computed here; None if they can."""
    from nemo.collections.tts.modules import audio_codec_modules as nemo

    for module, wanted in ((encoder, nemo.HiFiGANEncoder), (decoder, nemo.HiFiGANDecoder)):
        if type(module) is not wanted:
            return f"{type(module).__name__} isn't {wanted.__name__}"
        if max(len(layer.res_blocks) for layer in module.res_layers) > MOST_BRANCHES:
            return f"it has more than {MOST_BRANCHES} resblock_kernel_sizes"
        for part in module.modules():
            if isinstance(part, nemo.CodecActivation) and not isinstance(part.activation, nn.LeakyReLU):
                return f"its activation is {type(part.activation).__name__}, not LeakyReLU"
            if isinstance(part, nn.Conv1d) and part.padding_mode != "reflect":
                return f"its pad_mode is {part.padding_mode}, not reflect"
            if isinstance(part, nn.Conv1d | nn.ConvTranspose1d) and part.groups != 1:
                return "its convolutions are grouped"
    return None
