"""Who speaks: engines that pip or apt bring, free to redistribute what they say.

flite says a text the same way each time, pico in up to a sixth more or less time.

`flite` (apt) ships the CMU ARCTIC voices; `py-nanotts` (pip, the extra `s2s-data[demo]`) wraps SVOX Pico
(Apache-2.0). docs/demo.md states the terms.
"""

import functools
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

FloatArray = npt.NDArray[np.float32]
ENGINE_RATE_HZ = 16000  # both engines speak at 16 kHz
PAUSE = "pau"  # flite's name of one


@dataclass(frozen=True)
class Voice:
    """A speaker: an engine, its voice and, for pico, a pitch factor.

    `speed` plays what was spoken faster or slower, which moves pitch and formants along: another speaker to the ear.
    """

    name: str
    engine: str
    speaker: str
    pitch: float = 1.0
    speed: float = 1.0

    def say(self, text: str) -> FloatArray:
        """Speak `text`; returns [S] float32 at 16 kHz, silence trimmed from both ends."""
        return trim_silence(self._audio(text))

    def word_ends(self, text: str) -> tuple[float, ...]:
        """When the words of `text` end in what `say` returns, in seconds; flite tells, for pico there are none."""
        _, printed = _speak(self, text)
        if not printed:
            return ()
        first, _ = _loud_part(self._audio(text))
        num_sounds = [_num_sounds(self.speaker, word) for word in text.split()]
        return tuple(end_s / self.speed - first / ENGINE_RATE_HZ for end_s in _word_ends(printed, num_sounds))

    def _audio(self, text: str) -> FloatArray:
        import soxr

        audio_S, _ = _speak(self, text)
        if self.speed == 1.0:
            return audio_S
        return np.asarray(soxr.resample(audio_S, ENGINE_RATE_HZ * self.speed, ENGINE_RATE_HZ), dtype=np.float32)


AGENT_VOICE = Voice("slt", "flite", "slt")
HELDOUT_VOICE = Voice("awb", "flite", "awb")
USER_VOICES = (
    Voice("pico-us", "pico", "en-US"),
    Voice("pico-gb", "pico", "en-GB"),
    Voice("pico-us-low", "pico", "en-US", pitch=0.75),
    Voice("pico-gb-high", "pico", "en-GB", pitch=1.3),
    Voice("rms", "flite", "rms"),
    Voice("kal16", "flite", "kal16"),
)


@functools.lru_cache(maxsize=4096)
def _speak(voice: Voice, text: str) -> tuple[FloatArray, str]:
    if voice.engine == "flite":
        return _flite(voice.speaker, text)
    if voice.engine == "pico":
        return _pico(voice.speaker, text, voice.pitch), ""
    raise ValueError(f"voice {voice.name!r}: unknown engine {voice.engine!r}; known: flite, pico")


def _flite(speaker: str, text: str) -> tuple[FloatArray, str]:
    """What it says, and each sound with the second at which it ends: "pau:0.164 s:0.285 .."."""
    if shutil.which("flite") is None:
        raise FileNotFoundError("the demo's voices need the program `flite`: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        command = ["flite", "-voice", speaker, "-psdur", "-t", text, "-o", str(path)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        audio, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != ENGINE_RATE_HZ:
        raise ValueError(f"flite's voice {speaker!r} speaks at {rate_hz} Hz, {ENGINE_RATE_HZ} Hz is needed")
    return np.asarray(audio, dtype=np.float32), printed


@functools.lru_cache(maxsize=4096)
def _num_sounds(speaker: str, word: str) -> int:
    """Of how many sounds flite makes a word that it says for itself."""
    return len(_sound_ends(_flite(speaker, word)[1]))


def _sound_ends(printed: str) -> list[float]:
    """When sounds that aren't pauses end."""
    sounds = (sound.rsplit(":", 1) for sound in printed.split())
    return [float(end_s) for name, end_s in sounds if name != PAUSE]


def _word_ends(printed: str, num_sounds: Sequence[int]) -> tuple[float, ...]:
    """When words end. If a sentence has more or fewer sounds than its words alone, each has a share."""
    ends_s = _sound_ends(printed)
    through = list(itertools.accumulate(num_sounds))
    if not ends_s or not through or not through[-1]:
        return ()
    return tuple(ends_s[max(1, round(count * len(ends_s) / through[-1])) - 1] for count in through)


def _pico(speaker: str, text: str, pitch: float) -> FloatArray:
    try:
        from py_nanotts import NanoTTS
    except ImportError as error:
        raise ImportError("the demo's voices need py-nanotts: pip install 's2s-data[demo]'") from error
    pcm = NanoTTS().speak(text=text, voice=speaker, pitch=pitch)
    return (np.frombuffer(pcm, dtype=np.int16) / 32768).astype(np.float32)


def trim_silence(audio_S: FloatArray, threshold: float = 0.01, margin_s: float = 0.02) -> FloatArray:
    """Cut leading and trailing samples below `threshold` (full scale 1.0), keeping `margin_s` on both sides."""
    first, end = _loud_part(audio_S, threshold, margin_s)
    return audio_S[first:end]


def _loud_part(audio_S: FloatArray, threshold: float = 0.01, margin_s: float = 0.02) -> tuple[int, int]:
    """The first sample that `trim_silence` keeps, and the one behind the last."""
    loud = np.flatnonzero(np.abs(audio_S) > threshold)
    if not len(loud):
        raise ValueError("the speech engine returned silence")
    margin = int(margin_s * ENGINE_RATE_HZ)
    return max(0, int(loud[0]) - margin), min(len(audio_S), int(loud[-1]) + margin)
