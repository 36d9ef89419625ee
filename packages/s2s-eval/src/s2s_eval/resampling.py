"""Audio at the rate a model listens at, in pieces it can take."""

from collections.abc import Callable, Sequence

import numpy as np
import soxr
from torch import Tensor

from s2s_eval.asr import Samples

PIECE_S = 30  # what a model is given at most: Whisper's window, and a bound for what attention costs in others
BLOCKS_PER_S = 10


def at_rate(audio_S: Samples | Tensor, sample_rate: int, wanted_rate: int) -> Samples:
    """Return the mono audio [S] as float32 [S'] at ``wanted_rate``. Rates are in Hz.

    Raises ValueError where the audio isn't 1-D.
    """
    samples = audio_S.detach().float().cpu().numpy() if isinstance(audio_S, Tensor) else np.asarray(audio_S, np.float32)
    if samples.ndim != 1:
        raise ValueError(f"audio to score has shape {samples.shape}: give one 1-D array for each utterance")
    if sample_rate != wanted_rate:
        samples = soxr.resample(samples, sample_rate, wanted_rate)
    return np.ascontiguousarray(samples, np.float32)


def in_pieces(
    audios: Sequence[Samples | Tensor],
    sample_rate: int,
    wanted_rate: int,
    transcribe: Callable[[list[Samples]], list[str]],
) -> list[str]:
    """Let ``transcribe`` hear all audios at once, cut into pieces it can take; return a text for each audio."""
    cut = [split_long(at_rate(audio, sample_rate, wanted_rate), wanted_rate) for audio in audios]
    texts = iter(transcribe([piece for pieces in cut for piece in pieces]))
    return [" ".join(filter(None, [next(texts) for _ in pieces])) for pieces in cut]


def split_long(audio_S: Samples, sample_rate: int, limit_s: int = PIECE_S) -> list[Samples]:
    """Cut audio into pieces of at most ``limit_s``, each cut at the quietest 0.1 s of its last third.

    Of no audio there are no pieces.
    """
    block = sample_rate // BLOCKS_PER_S
    blocks = limit_s * BLOCKS_PER_S
    first = blocks * 2 // 3
    pieces = []
    while len(audio_S) > blocks * block:
        tail = audio_S[first * block : blocks * block].reshape(-1, block)
        end = (first + int((tail**2).mean(axis=1).argmin())) * block + block // 2
        pieces.append(audio_S[:end])
        audio_S = audio_S[end:]
    return [*pieces, audio_S] if len(audio_S) else pieces
