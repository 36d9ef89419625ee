"""Where a channel is audible, by its loudness alone.

Shapes: ``S`` samples.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from s2s_eval.asr import Samples

BLOCK_S = 0.02  # loudness is measured over blocks of this length
MIN_SPEECH_S = 0.1  # less sound than this is a click, not a word
CLOSURE_S = 0.1  # silence within a word, before a "t" or "k", isn't longer
BRIDGE_S = 0.5  # silence shorter than this is a pause within speech, not its end

Span = tuple[float, float]  # start and end in seconds


def loud_blocks(audio_S: Samples, sample_rate: int, silence_dbfs: float) -> npt.NDArray[np.bool_]:
    """Return for each block whether its RMS is above ``silence_dbfs`` (dB of full scale); a last partial one is cut."""
    block = block_samples(sample_rate)
    num_blocks = len(audio_S) // block
    rms = np.sqrt((audio_S[: num_blocks * block].reshape(num_blocks, block) ** 2).mean(axis=1))
    loud: npt.NDArray[np.bool_] = rms > 10 ** (silence_dbfs / 20)
    return loud


def block_samples(sample_rate: int) -> int:
    """Return how many samples a block has. ``sample_rate`` is in Hz."""
    return max(1, round(BLOCK_S * sample_rate))


def speech_segments(audio_S: Samples, sample_rate: int, silence_dbfs: float) -> list[Span]:
    """Return the audible segments of [S] at ``sample_rate`` Hz as (start, end) in seconds, in order.

    Sounds no further apart than :data:`CLOSURE_S` are one; of those, what is loud for less than :data:`MIN_SPEECH_S`
    is a click and dropped; what is left is one segment where less than :data:`BRIDGE_S` lies between. Clicks go before
    pauses are bridged: else a click 0.4 s ahead of the speech would be its start.
    """
    block_s = block_samples(sample_rate) / sample_rate
    loud = np.flatnonzero(loud_blocks(audio_S, sample_rate, silence_dbfs))
    gaps = np.flatnonzero((np.diff(loud) - 1) * block_s > CLOSURE_S + 1e-9) + 1
    sounds = [run for run in np.split(loud, gaps) if len(run) * block_s >= MIN_SPEECH_S - 1e-9]
    return bridged([(int(run[0]) * block_s, (int(run[-1]) + 1) * block_s) for run in sounds])


def bridged(spans: Sequence[Span], gap_s: float = BRIDGE_S) -> list[Span]:
    """Return the spans in order of start, with those that overlap or lie less than ``gap_s`` apart made one."""
    joined: list[Span] = []
    for start_s, end_s in sorted(spans):
        if joined and start_s - joined[-1][1] < gap_s - 1e-9:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end_s))
        else:
            joined.append((start_s, end_s))
    return joined


def overlap_s(spans: Sequence[Span], others: Sequence[Span]) -> float:
    """Return for how many seconds two lists of spans are both on. Spans of one list mustn't overlap."""
    return math.fsum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in spans for b in others)


def only_speech(audio_S: Samples, sample_rate: int, segments: Sequence[Span]) -> Samples:
    """Return the segments' samples one after the other; empty where there is none."""
    pieces = [audio_S[round(start_s * sample_rate) : round(end_s * sample_rate)] for start_s, end_s in segments]
    return np.concatenate(pieces) if pieces else audio_S[:0]
