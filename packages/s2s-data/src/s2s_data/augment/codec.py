"""The user through a lossy codec. Shapes: ``S`` samples of user audio."""

import io
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import soundfile
from lhotse.augmentation.compress import MP3_SUPPORTED_SAMPLING_RATES, OPUS_SUPPORTED_SAMPLING_RATES

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_range
from s2s_data.augment.config import CodecConfig
from s2s_data.augment.frames import fitted
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.errors import DataError, unknown_name

# libvorbis overflows the stack where a minute or more is written at once, and the process dies: that is also
# why this isn't lhotse's Compress (https://github.com/xiph/vorbis/pull/104; delete when libsndfile ships it)
SAMPLES_AT_ONCE = 16000


class Format(NamedTuple):
    """A codec as libsndfile knows it."""

    container: str
    subtype: str
    rates_hz: list[int] | None  # the sample rates it can have; None: any


FORMATS = {
    "mp3": Format("MP3", "MPEG_LAYER_III", MP3_SUPPORTED_SAMPLING_RATES),
    "opus": Format("OGG", "OPUS", OPUS_SUPPORTED_SAMPLING_RATES),
    "vorbis": Format("OGG", "VORBIS", None),
}


@dataclass(frozen=True)
class Codec(Augmentation):
    """Encodes and decodes the user's channel; the agent's is left as it is.

    libsndfile takes the codec's delay out and keeps the length (measured for the three codecs at 8 to 48
    kHz, and tested), so times stay.
    """

    codecs: tuple[str, ...]
    compression_min: float
    compression_max: float
    where: str

    @classmethod
    def of(cls, cfg: CodecConfig, where: str) -> "Codec":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        if not cfg.codecs:
            raise DataError(f"{where}.codecs is empty: name one of {', '.join(FORMATS)}")
        for name in cfg.codecs:
            if name not in FORMATS:
                raise DataError(f"{where}.codecs: {unknown_name(name, FORMATS)}")
        # libsndfile 1.2.2 fails on mp3 at 1.0
        check_range(cfg.compression_min, cfg.compression_max, "compression", where, lowest=0, highest=0.99)
        return cls(tuple(cfg.codecs), cfg.compression_min, cfg.compression_max, where)

    def check(self, dialogue: Dialogue) -> None:
        """Raise :class:`DataError` if one of the codecs can't have the user's sample rate."""
        for name in self.codecs:
            rates_hz = FORMATS[name].rates_hz
            if rates_hz is not None and dialogue.source_rate_hz not in rates_hz:
                raise DataError(
                    f"{self.where}.codecs: {name} can't have data.source_sample_rate {dialogue.source_rate_hz}, only "
                    f"{', '.join(map(str, rates_hz))}: use one of these, or leave {name} out"
                )

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with the user heard through one of the codecs."""
        codec = FORMATS[self.codecs[rng.integers(len(self.codecs))]]
        compression = float(rng.uniform(self.compression_min, self.compression_max))
        heard_S = _through(codec, dialogue.source_S, dialogue.source_rate_hz, compression)
        return replace(dialogue, source_S=fitted(heard_S, len(dialogue.source_S)))


def _through(codec: Format, audio_S: FloatArray, rate_hz: int, compression: float) -> FloatArray:
    encoded = io.BytesIO()
    with soundfile.SoundFile(
        encoded, "w", rate_hz, 1, codec.subtype, format=codec.container, compression_level=compression
    ) as file:
        for start in range(0, len(audio_S), SAMPLES_AT_ONCE):
            file.write(audio_S[start : start + SAMPLES_AT_ONCE])
    encoded.seek(0)
    decoded_S: FloatArray = soundfile.read(encoded, dtype="float32")[0]
    return decoded_S
