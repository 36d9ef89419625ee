"""Coding with NeMo's HiFi-GAN codec by the modules of hifigan.py: batches of any size and length on one device.

Shapes: `B` batch, `S` samples, `T` frames, `D` latents of a frame, `K` codebooks.
"""

import logging
from importlib.util import find_spec
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor

from s2s_model.codecs.convolution import Span
from s2s_model.codecs.hifigan import HiFiGANDecoder, HiFiGANEncoder, reason_against

log = logging.getLogger(__name__)

# Frames of all examples together, so many that they fill a GPU and a slow host keeps up: 0.6 GiB and 0.4 for a codec of
# 93 M parameters.
ENCODED_AT_ONCE = 512
DECODED_AT_ONCE = 512
PROBED_FRAMES = 12
TOLERANCE = 0.01  # float16 and TF32 differ from float32 by a tenth of it


class HiFiGANCoding:
    """Encodes and decodes as NeMo's model does, whose encoder and decoder it takes the weights of."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        self._model = model
        self._samples_per_frame = int(model.samples_per_frame)
        self._encoder = HiFiGANEncoder(model.audio_encoder, dtype)
        self._decoder = HiFiGANDecoder(model.audio_decoder, dtype)

    def latents(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        """Latents [B, D, T] of whole frames of audio at the model's own input rate."""
        T = audio_BS.shape[1] // self._samples_per_frame
        end_1 = frames_B.max()[None]
        rows = _rows_at_once(len(audio_BS), T, ENCODED_AT_ONCE)
        pieces = [
            self._encoder(audio, Span(frames, end_1))
            for audio, frames in zip(audio_BS.split(rows), frames_B.split(rows), strict=True)
        ]
        return torch.cat(pieces)[..., :T]

    def encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        """Codes [B, K, T] of whole frames of audio at the model's own input rate."""
        codes: Tensor = self._model.quantize(encoded=self.latents(audio_BS, frames_B), encoded_len=frames_B)
        return codes

    def decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        """Audio [B, S] of codes."""
        T = codes_BKT.shape[2]
        latents_BDT = self._model.dequantize(tokens=codes_BKT, tokens_len=frames_B)
        end_1 = torch.full((1,), T, device=codes_BKT.device)
        rows = _rows_at_once(len(codes_BKT), T, DECODED_AT_ONCE)
        pieces = [
            self._decoder(latents, Span(frames, end_1))
            for latents, frames in zip(latents_BDT.split(rows), frames_B.split(rows), strict=True)
        ]
        whole_BS = torch.cat(pieces)
        return whole_BS[:, : whole_BS.shape[1] * T // latents_BDT.shape[2]]


def hifigan_coding(model: Any, precision: str | None, key: str) -> HiFiGANCoding | None:
    """The fast coding of NeMo's model on the device where it lies; None where NeMo's own has to do, which is logged.

    Before it is used, it has to agree with NeMo's own on the loudest noise.

    Args:
        model: NeMo's `AudioCodecModel`.
        precision: "float16", "float32", or None: float16 where that agrees, else float32.
        key: the config key that errors begin with.

    Raises:
        ValueError: float16 was asked for, and isn't possible.
    """
    reason = _reason_against(model)
    if reason is None:
        for dtype in (torch.float16, torch.float32) if precision is None else (getattr(torch, precision),):
            coding = HiFiGANCoding(model, dtype)
            error = _disagreement(model, coding)
            if error <= TOLERANCE:
                return coding
            reason = f"in {dtype} it differs by {error:.2g} of the sound, more than {TOLERANCE}"
            log.warning("The codec's fast way isn't used: %s", reason)
    if precision == "float16":
        raise ValueError(f"{key}: precision is float16, but the codec can't run in it: {reason}: leave it out")
    log.info("The codec runs by NeMo's own modules, in float32: %s", reason)
    return None


def check_float16(model: Any, key: str) -> None:
    """Refuse float16 for a codec that can't have it, before a GPU is there.

    Raises:
        ValueError: its modules aren't those of hifigan.py; the message begins with `key`.
    """
    if reason := _reason_in_model(model):
        raise ValueError(f"{key}: precision is float16, but the codec can't run in it: {reason}: leave it out")


def _reason_in_model(model: Any) -> str | None:
    if getattr(model, "semantic_codec", None) is not None:
        return "it has a semantic_codec"
    return reason_against(model.audio_encoder, model.audio_decoder)


def _reason_against(model: Any) -> str | None:
    if reason := _reason_in_model(model):
        return reason
    if _device(model).type == "cuda" and find_spec("triton") is None:
        return "triton isn't installed"
    return None


def _device(model: Any) -> torch.device:
    device: torch.device = next(model.vector_quantizer.buffers()).device
    return device


@torch.no_grad()
def _disagreement(model: Any, coding: HiFiGANCoding) -> float:
    """The larger of the relative errors of latents and of audio, on noise at full scale."""
    device = _device(model)
    generator = torch.Generator().manual_seed(0)
    size = int(model.samples_per_frame)
    noise = torch.randn(2, PROBED_FRAMES * size, generator=generator).sign().to(device)
    frames = torch.tensor([PROBED_FRAMES, PROBED_FRAMES - 3], device=device)
    noise = noise.where(torch.arange(noise.shape[1], device=device) < frames[:, None] * size, 0.0)
    expected, _ = model.audio_encoder(audio=noise, audio_len=frames * size)
    codes = model.quantize(encoded=expected, encoded_len=frames)
    sound = model.decode(tokens=codes, tokens_len=frames)[0]
    return max(
        _relative_error(coding.latents(noise, frames), expected), _relative_error(coding.decode(codes, frames), sound)
    )


def _relative_error(one: Tensor, other: Tensor) -> float:
    error = ((one - other).norm() / other.norm()).item()
    return inf if isnan(error) else error  # it overflowed


def _rows_at_once(num_rows: int, num_frames: int, frames_at_once: int) -> int:
    """Examples of a piece: pieces as equal as can be."""
    num_pieces = -(-num_rows * num_frames // frames_at_once)
    return -(-num_rows // min(num_pieces, num_rows))
