"""Noise behind the user. Shapes: ``S`` samples of user audio."""

from dataclasses import dataclass, replace

import numpy as np

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_range
from s2s_data.augment.clips import Clip, Clips
from s2s_data.augment.config import NoiseConfig
from s2s_data.augment.frames import fitted
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.roles import USER


@dataclass(frozen=True)
class Noise(Augmentation):
    """Adds a noise to the user's channel; the agent's is left as it is.

    The ratio is of the power of the user's speech, measured within the user's turns, to that of the noise,
    measured over all that is added. Where the user is silent there is no such ratio: nothing is added.
    """

    clips: Clips
    snr_db_min: float
    snr_db_max: float

    @classmethod
    def of(cls, cfg: NoiseConfig, where: str) -> "Noise":
        """Check ``cfg`` and find its files. Raises :class:`DataError`, naming the key."""
        check_range(cfg.snr_db_min, cfg.snr_db_max, "snr_db", where)
        return cls(Clips.find(cfg.files, f"{where}.files"), cfg.snr_db_min, cfg.snr_db_max)

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with noise.

        Raises :class:`UnreadableCutError` if the noise can't be read.
        """
        noise_S = _long_enough(self.clips.draw(rng), len(dialogue.source_S), dialogue.source_rate_hz, rng)
        snr_db = rng.uniform(self.snr_db_min, self.snr_db_max)
        speech_power, noise_power = _speech_power(dialogue), _power(noise_S)
        if speech_power == 0 or noise_power == 0:
            return dialogue
        gain = float(np.sqrt(speech_power / noise_power / 10 ** (snr_db / 10)))
        return replace(dialogue, source_S=dialogue.source_S + gain * noise_S)


def _long_enough(clip: Clip, num_samples: int, rate_hz: int, rng: np.random.Generator) -> FloatArray:
    """Return ``num_samples`` of a clip from a random offset on; a short one is repeated."""
    needed_s = num_samples / rate_hz
    if clip.duration_s >= needed_s:
        offset_s = rng.uniform(0, clip.duration_s - needed_s)
        return fitted(clip.load(rate_hz, offset_s, needed_s), num_samples)
    whole_S = clip.load(rate_hz)
    return np.resize(np.roll(whole_S, -rng.integers(len(whole_S))), num_samples)


def _speech_power(dialogue: Dialogue) -> float:
    rate_hz = dialogue.source_rate_hz
    spans = [
        dialogue.source_S[round(turn.start_s * rate_hz) : round(turn.end_s * rate_hz)]
        for turn in dialogue.turns
        if turn.role == USER
    ]
    return _power(np.concatenate(spans)) if spans else 0.0


def _power(audio_S: FloatArray) -> float:
    return float(np.mean(np.square(audio_S, dtype=np.float64))) if len(audio_S) else 0.0
