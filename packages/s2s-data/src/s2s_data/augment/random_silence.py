"""A pause where nobody speaks. Shapes: ``T`` frames (80 ms), ``K`` codebooks."""

import math
from dataclasses import dataclass

import numpy as np

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_range
from s2s_data.augment.config import RandomSilenceConfig
from s2s_data.augment.frames import Splice, frame_start, splice
from s2s_data.dialogue import Dialogue, IntArray
from s2s_data.errors import DataError

TOLERANCE_S = 1e-6  # a turn's end and the frame that starts there may differ by as much as sums of floats do


@dataclass(frozen=True)
class RandomSilence(Augmentation):
    """Puts whole frames of silence into both channels, at the start of a frame at which no turn is going on.

    What lies behind moves by as many frames: audio, turns and codes. The agent's new codes are the codec's
    codes of silence.
    """

    num_frames_min: int
    num_frames_max: int
    silence_codes_K: IntArray | None
    where: str

    @classmethod
    def of(cls, cfg: RandomSilenceConfig, where: str, silence_codes_K: IntArray | None) -> "RandomSilence":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        check_range(cfg.num_frames_min, cfg.num_frames_max, "num_frames", where, lowest=1)
        return cls(cfg.num_frames_min, cfg.num_frames_max, silence_codes_K, where)

    def check(self, dialogue: Dialogue) -> None:
        """Raise :class:`DataError` if the dialogue has codes and the codes of silence aren't like them."""
        if dialogue.codes_TK is None:
            return
        if self.silence_codes_K is None:
            raise DataError(
                f"{self.where} needs the codec's codes of a silent frame, as cut {dialogue.cut_id} has stored codes: "
                "pass silence_codes_K, or take random_silence out"
            )
        num_codebooks = dialogue.codes_TK.shape[1]
        if self.silence_codes_K.shape != (num_codebooks,):
            raise DataError(
                f"{self.where}: silence_codes_K has shape {list(self.silence_codes_K.shape)}, but cut "
                f"{dialogue.cut_id} has codes of {num_codebooks} codebooks: take both from one codec"
            )

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with a pause, or as it is where somebody speaks all the time."""
        moments = _silent_moments(dialogue)
        num_frames = int(rng.integers(self.num_frames_min, self.num_frames_max, endpoint=True))
        if len(moments) == 0:
            return dialogue
        frame = int(rng.choice(moments))
        frame_length_s = dialogue.grid.frame_length_s
        turns = [
            turn._replace(start_s=turn.start_s + num_frames * frame_length_s)
            if turn.start_s > frame * frame_length_s - TOLERANCE_S
            else turn
            for turn in dialogue.turns
        ]
        pause = Splice(frame, frame, num_frames)
        return splice(dialogue, pause, pause, turns, self.silence_codes_K)


def _silent_moments(dialogue: Dialogue) -> IntArray:
    """Return the frames, up to the dialogue's end, at whose start no turn is going on."""
    last = _last_frame(dialogue)
    frames = np.arange(last + 1)
    times_s = frames * dialogue.grid.frame_length_s
    silent = np.ones(len(frames), dtype=bool)
    for turn in dialogue.turns:
        silent &= (times_s < turn.start_s + TOLERANCE_S) | (times_s > turn.end_s - TOLERANCE_S)
    return frames[silent]


def _last_frame(dialogue: Dialogue) -> int:
    """Return the last frame boundary that lies in all of the dialogue's channels."""
    frame_length_s = dialogue.grid.frame_length_s
    last = math.floor(dialogue.duration_s / frame_length_s + TOLERANCE_S)
    if frame_start(last, frame_length_s, dialogue.source_rate_hz) > len(dialogue.source_S):
        last -= 1
    return last if dialogue.codes_TK is None else min(last, len(dialogue.codes_TK))
