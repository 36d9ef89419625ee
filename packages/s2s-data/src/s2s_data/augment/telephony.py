"""The user on a telephone. Shapes: ``S`` samples of user audio."""

from dataclasses import dataclass, replace

import numpy as np

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_within
from s2s_data.augment.config import TelephonyConfig
from s2s_data.augment.frames import fitted
from s2s_data.augment.resampling import resampled
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.errors import DataError

LINE_RATE_HZ = 8000
EDGE_HZ = 100.0  # the width over which the band's edges fall off: steeper ones would ring audibly
MU = 255  # ITU-T G.711's
LEVELS = 127  # of each sign, in 8 bits


@dataclass(frozen=True)
class Telephony(Augmentation):
    """Sends the user's channel through a telephone line; the agent's is left as it is.

    Resamples to 8 kHz, band-limits without delay, clips at full scale, quantizes to 8 bits on the mu-law
    curve, and resamples back. Length and times stay.
    """

    band_low_hz: float
    band_high_hz: float

    @classmethod
    def of(cls, cfg: TelephonyConfig, where: str) -> "Telephony":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        check_within(cfg.band_low_hz, 0, LINE_RATE_HZ / 2, f"{where}.band_low_hz")
        check_within(cfg.band_high_hz, 0, LINE_RATE_HZ / 2, f"{where}.band_high_hz")
        if cfg.band_low_hz >= cfg.band_high_hz:
            raise DataError(
                f"{where}.band_low_hz is {cfg.band_low_hz}, but must be below band_high_hz, which is {cfg.band_high_hz}"
            )
        return cls(cfg.band_low_hz, cfg.band_high_hz)

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with the user on the telephone; ``rng`` isn't used."""
        rate_hz = dialogue.source_rate_hz
        line_S = self._band_limited(resampled(dialogue.source_S, rate_hz, LINE_RATE_HZ))
        heard_S = resampled(_mu_law(line_S), LINE_RATE_HZ, rate_hz)
        return replace(dialogue, source_S=fitted(heard_S, len(dialogue.source_S)))

    def _band_limited(self, audio_S: FloatArray) -> FloatArray:
        num_padded = len(audio_S) + LINE_RATE_HZ // 10  # so that the end doesn't ring into the start
        hz = np.fft.rfftfreq(num_padded, 1 / LINE_RATE_HZ)
        gain = np.interp(hz, [self.band_low_hz - EDGE_HZ / 2, self.band_low_hz + EDGE_HZ / 2], [0, 1])
        gain *= np.interp(hz, [self.band_high_hz - EDGE_HZ / 2, self.band_high_hz + EDGE_HZ / 2], [1, 0])
        limited_S = np.fft.irfft(np.fft.rfft(audio_S, num_padded) * gain, num_padded)[: len(audio_S)]
        return np.asarray(limited_S, dtype=np.float32)


def _mu_law(audio_S: FloatArray) -> FloatArray:
    """Quantize to 8 bits and back, on G.711's continuous curve."""
    clipped_S = np.clip(audio_S, -1, 1)
    compressed_S = np.log1p(MU * np.abs(clipped_S)) / np.log1p(MU)
    quantized_S = np.round(compressed_S * LEVELS) / LEVELS
    return np.asarray(np.sign(clipped_S) * np.expm1(quantized_S * np.log1p(MU)) / MU, dtype=np.float32)
