"""Where frames lie in audio, and taking frames out of a dialogue or putting silence in.

Shapes: ``S`` samples, ``T`` frames (80 ms), ``K`` codebooks.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from lhotse.utils import compute_num_samples

from s2s_data.batch import Turn
from s2s_data.dialogue import Dialogue, FloatArray, IntArray
from s2s_data.text_channel import FrameGrid


def frame_start(frame: int, frame_length_s: float, rate_hz: int) -> int:
    """Return the sample at which ``frame`` starts in audio of ``rate_hz``: the one rule of all augmentations."""
    return round(frame * frame_length_s * rate_hz)


def first_frame_after(time_s: float, frame_length_s: float) -> int:
    """Return the first frame that starts at ``time_s`` or later."""
    return math.ceil(_in_frames(time_s, frame_length_s))


def last_frame_before(time_s: float, frame_length_s: float) -> int:
    """Return the last frame that starts at ``time_s`` or earlier."""
    return math.floor(_in_frames(time_s, frame_length_s))


def _in_frames(time_s: float, frame_length_s: float) -> float:
    return round(time_s / frame_length_s, 6)  # 0.24 / 0.08 isn't 3: a frame's own start must be its start


def fitted(audio_S: FloatArray, num_samples: int) -> FloatArray:
    """Return ``audio_S`` cut, or extended by silence, to ``num_samples``."""
    if len(audio_S) == num_samples:
        return audio_S
    fitted_S = np.zeros(num_samples, dtype=np.float32)
    fitted_S[: len(audio_S)] = audio_S[:num_samples]
    return fitted_S


class Splice(NamedTuple):
    """Frames ``start`` to ``end`` (exclusive) of a channel give way to frames of silence."""

    start: int
    end: int
    num_silent_frames: int = 0

    @property
    def num_added_frames(self) -> int:
        """By how many frames the channel gets longer; below 0 where it gets shorter."""
        return self.num_silent_frames - (self.end - self.start)


def splice(
    dialogue: Dialogue,
    source: Splice,
    target: Splice,
    turns: Sequence[Turn],
    silence_codes_K: IntArray | None = None,
) -> Dialogue:
    """Splice both channels of a dialogue.

    Parameters
    ----------
    dialogue
        The dialogue.
    source, target
        What becomes of the user's and of the agent's channel: both get longer by the same number of frames.
    turns
        The turns of the result.
    silence_codes_K
        [K] codes of a silent frame; needed where silence comes in and the dialogue has codes.

    Returns
    -------
    Dialogue
        The new dialogue. Where a frame is a whole number of samples, each frame behind the splice has the
        samples that it had; else they may lie one sample off.

    """
    assert source.num_added_frames == target.num_added_frames
    grid = dialogue.grid
    duration_s = dialogue.duration_s + source.num_added_frames * grid.frame_length_s
    target_R, codes_TK = dialogue.target_R, dialogue.codes_TK
    if target_R is not None:
        target_R = _splice_audio(target_R, target, duration_s, dialogue.target_rate_hz, grid.frame_length_s)
    if codes_TK is not None:
        codes_TK = _splice_codes(codes_TK, target, silence_codes_K)
    return replace(
        dialogue,
        duration_s=duration_s,
        grid=FrameGrid.of(duration_s, grid.frame_length_s, grid.sample_rate_hz),
        turns=tuple(turns),
        source_S=_splice_audio(dialogue.source_S, source, duration_s, dialogue.source_rate_hz, grid.frame_length_s),
        target_R=target_R,
        codes_TK=codes_TK,
    )


def _splice_audio(
    audio_S: FloatArray, change: Splice, duration_s: float, rate_hz: int, frame_length_s: float
) -> FloatArray:
    start, end, silence_end = (
        frame_start(frame, frame_length_s, rate_hz)
        for frame in (change.start, change.end, change.start + change.num_silent_frames)
    )
    silence_S = np.zeros(silence_end - start, dtype=np.float32)
    spliced_S = np.concatenate([audio_S[:start], silence_S, audio_S[end:]])
    return fitted(spliced_S, compute_num_samples(duration_s, rate_hz))


def _splice_codes(codes_TK: IntArray, change: Splice, silence_codes_K: IntArray | None) -> IntArray:
    parts = [codes_TK[: change.start], codes_TK[change.end :]]
    if change.num_silent_frames:
        assert silence_codes_K is not None
        parts.insert(1, np.tile(silence_codes_K.astype(codes_TK.dtype), (change.num_silent_frames, 1)))
    return np.concatenate(parts)
