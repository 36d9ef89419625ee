"""How far a codec's decoder looks beyond a frame: what a live session decodes along with each window.

Shapes: `B` batch, `S` samples, `T` frames, `K` codebooks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from s2s_model.codecs.base import AudioCodec

NOISE = 1e-6  # share of the loudest sample under which a difference is rounding, not influence
NUM_PROBES = 2  # one sequence may hide an influence, as a unit that is off does


class DecodeContext(NamedTuple):
    """Frames around a window that its samples depend on."""

    left_frames: int
    right_frames: int
    exact: bool  # False: the decoder remembers further than that (an LSTM, attention)


def decode_context(codec: AudioCodec, max_frames: int = 64) -> DecodeContext:
    """Measure how many frames to the left and right of a window have to be decoded with it.

    Random codes are decoded twice, the second time with all frames up to the middle one changed. The last sample that
    differs tells how long a frame is remembered (`left_frames`); with all frames from the middle on changed, the first
    one tells how far the decoder looks ahead (`right_frames`). Both are `max_frames` at most; where a change reaches
    that far, or the codec is recurrent, `exact` is False. It costs three decodes of 2 * (2 * max_frames + 1) frames, on
    the CPU in float32: a GPU's float16 rounds a sample otherwise where frames far away are others. The codec is back on
    its device then, with weights at new addresses.

    Raises:
        ValueError: `max_frames` is below 1.
    """
    if max_frames < 1:
        raise ValueError(f"max_frames is {max_frames}: probe at least 1 frame")
    if max_frames not in codec._contexts:  # once: a graph that was captured reads the weights where they lie
        codec._contexts[max_frames] = _measure(codec, max_frames)
    context: DecodeContext = codec._contexts[max_frames]
    return context


def _measure(codec: AudioCodec, max_frames: int) -> DecodeContext:
    middle, T = max_frames, 2 * max_frames + 1
    one_BTK, other_BTK = _random_codes(codec, T)
    is_past_T = (torch.arange(T) <= middle)[:, None]
    is_future_T = (torch.arange(T) >= middle)[:, None]
    device = codec.device
    codec._move_to(torch.device("cpu"))
    try:
        one_BS = _decode(codec, one_BTK)
        left = _changed_frames(codec, one_BS, _decode(codec, other_BTK.where(is_past_T, one_BTK)))[-1] - middle
        right = middle - _changed_frames(codec, one_BS, _decode(codec, other_BTK.where(is_future_T, one_BTK)))[0]
    finally:
        codec._move_to(device)
    within = left < max_frames and right < max_frames
    return DecodeContext(max(left, 0), max(right, 0), exact=within and not codec.recurrent)


def _random_codes(codec: AudioCodec, num_frames: int) -> tuple[Tensor, Tensor]:
    """Two batches of codes [B, T, K] that differ everywhere, the same each time."""
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_PROBES, num_frames, codec.num_codebooks)
    one_BTK = torch.randint(codec.codebook_size, shape, generator=generator)
    shift_BTK = torch.randint(1, codec.codebook_size, shape, generator=generator)
    return one_BTK, (one_BTK + shift_BTK) % codec.codebook_size


def _decode(codec: AudioCodec, codes_BTK: Tensor) -> Tensor:
    """Audio [B, S] of whole sequences."""
    return codec.decode(codes_BTK, torch.full(codes_BTK.shape[:1], codes_BTK.shape[1]))[0]


def _changed_frames(codec: AudioCodec, one_BS: Tensor, other_BS: Tensor) -> list[int]:
    """The frames whose samples differ between two batches of audio."""
    changed_BS = (one_BS - other_BS).abs() > NOISE * one_BS.abs().max()
    changed_BTS = changed_BS.unflatten(1, (-1, codec.samples_per_frame))
    changed: list[int] = changed_BTS.any(dim=2).any(dim=0).nonzero().flatten().tolist()
    if not changed:
        raise ValueError(f"the codec {codec.fingerprint} decodes different codes to the same audio: is it trained?")
    return changed
