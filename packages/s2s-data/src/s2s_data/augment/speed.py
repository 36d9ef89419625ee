"""The whole dialogue faster or slower. Shapes: ``S`` samples."""

from dataclasses import dataclass, replace

import numpy as np
from lhotse.utils import compute_num_samples

from s2s_data.augment.base import Augmentation, check_has_target_audio
from s2s_data.augment.checks import check_range
from s2s_data.augment.config import SpeedConfig
from s2s_data.augment.frames import fitted
from s2s_data.augment.resampling import resampled
from s2s_data.batch import TimedWords, Turn
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.text_channel import FrameGrid


@dataclass(frozen=True)
class Speed(Augmentation):
    """Plays both channels at another speed, by resampling: the pitch changes with it.

    Turns, duration and frame grid go with the audio. Stored codes can't: they are left out, and the model
    encodes the audio.
    """

    percent_min: int  # whole percents, so that the resampling filters are small and few
    percent_max: int
    where: str

    @classmethod
    def of(cls, cfg: SpeedConfig, where: str) -> "Speed":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        check_range(cfg.factor_min, cfg.factor_max, "factor", where, lowest=0.5, highest=2)
        return cls(round(100 * cfg.factor_min), round(100 * cfg.factor_max), where)

    def check(self, dialogue: Dialogue) -> None:
        """Raise :class:`DataError` if the agent's audio isn't loaded."""
        check_has_target_audio(dialogue, self.where)

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` at another speed, or as it is where the draw is 1.0."""
        percent = int(rng.integers(self.percent_min, self.percent_max, endpoint=True))
        if percent == 100:
            return dialogue
        assert dialogue.target_R is not None
        grid = dialogue.grid
        num_samples = compute_num_samples(dialogue.duration_s * 100 / percent, grid.sample_rate_hz)
        duration_s = num_samples / grid.sample_rate_hz
        return replace(
            dialogue,
            duration_s=duration_s,
            grid=FrameGrid.of(duration_s, grid.frame_length_s, grid.sample_rate_hz),
            turns=tuple(_at_speed(turn, percent) for turn in dialogue.turns),
            source_S=_played(dialogue.source_S, percent, compute_num_samples(duration_s, dialogue.source_rate_hz)),
            target_R=_played(dialogue.target_R, percent, compute_num_samples(duration_s, dialogue.target_rate_hz)),
            codes_TK=None,
        )


def _at_speed(turn: Turn, percent: int) -> Turn:
    start_s, duration_s = turn.start_s * 100 / percent, turn.duration_s * 100 / percent
    words = tuple(TimedWords(text, at_s * 100 / percent, for_s * 100 / percent) for text, at_s, for_s in turn.words)
    return turn._replace(start_s=start_s, duration_s=duration_s, words=words)


def _played(audio_S: FloatArray, percent: int, num_samples: int) -> FloatArray:
    return fitted(resampled(audio_S, percent, 100), num_samples)
