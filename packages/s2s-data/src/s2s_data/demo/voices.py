"""Who speaks: engines that pip or apt bring, free to redistribute what they say.

flite says a text the same way each time, pico in up to a sixth more or less time.

`flite` (apt) ships the CMU ARCTIC voices; `py-nanotts` (pip, the extra `s2s-data[demo]`) wraps SVOX Pico
(Apache-2.0). docs/demo.md states the terms.
"""

import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

FloatArray = npt.NDArray[np.float32]
ENGINE_RATE_HZ = 16000  # both engines speak at 16 kHz


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
        import soxr

        audio_S = _speak(self, text)
        if self.speed != 1.0:
            audio_S = np.asarray(soxr.resample(audio_S, ENGINE_RATE_HZ * self.speed, ENGINE_RATE_HZ), dtype=np.float32)
        return trim_silence(audio_S)


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
def _speak(voice: Voice, text: str) -> FloatArray:
    if voice.engine == "flite":
        return _flite(voice.speaker, text)
    if voice.engine == "pico":
        return _pico(voice.speaker, text, voice.pitch)
    raise ValueError(f"voice {voice.name!r}: unknown engine {voice.engine!r}; known: flite, pico")


def _flite(speaker: str, text: str) -> FloatArray:
    if shutil.which("flite") is None:
        raise FileNotFoundError("the demo's voices need the program `flite`: apt-get install flite")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.wav"
        subprocess.run(["flite", "-voice", speaker, "-t", text, "-o", str(path)], check=True)
        audio, rate_hz = soundfile.read(path, dtype="float32")
    if rate_hz != ENGINE_RATE_HZ:
        raise ValueError(f"flite's voice {speaker!r} speaks at {rate_hz} Hz, {ENGINE_RATE_HZ} Hz is needed")
    return np.asarray(audio, dtype=np.float32)


def _pico(speaker: str, text: str, pitch: float) -> FloatArray:
    try:
        from py_nanotts import NanoTTS
    except ImportError as error:
        raise ImportError("the demo's voices need py-nanotts: pip install 's2s-data[demo]'") from error
    pcm = NanoTTS().speak(text=text, voice=speaker, pitch=pitch)
    return (np.frombuffer(pcm, dtype=np.int16) / 32768).astype(np.float32)


def trim_silence(audio_S: FloatArray, threshold: float = 0.01, margin_s: float = 0.02) -> FloatArray:
    """Cut leading and trailing samples below `threshold` (full scale 1.0), keeping `margin_s` on both sides."""
    loud = np.flatnonzero(np.abs(audio_S) > threshold)
    if not len(loud):
        raise ValueError("the speech engine returned silence")
    margin = int(margin_s * ENGINE_RATE_HZ)
    return audio_S[max(0, loud[0] - margin) : loud[-1] + margin]
