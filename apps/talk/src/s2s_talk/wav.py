"""Recordings in and out, at the rates of the model.

Shapes: `N` frames, `S` samples of a frame.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from s2s_talk.user import Audio


def wav_audio(path: Path, tail_s: float) -> Audio:
    """A recording as a user says it: mono, at the model's rate, with `tail_s` of silence behind it to be answered in.

    Raises:
        ValueError: the file can't be read as audio, or is empty.
        FileNotFoundError: there is none.
    """
    import soundfile
    import soxr

    if not path.is_file():
        raise FileNotFoundError(f"no recording {path}")
    try:
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} can't be read as audio: {error}") from error
    if not len(audio):
        raise ValueError(f"{path} holds no audio")

    def frames(model_rate_hz: int, samples_per_frame: int) -> NDArray[np.int16]:
        mono = soxr.resample(audio.mean(axis=1), rate_hz, model_rate_hz)
        mono = np.pad(mono, (0, round(tail_s * model_rate_hz)))
        mono = np.pad(mono, (0, -len(mono) % samples_per_frame))
        return _to_pcm(mono).reshape(-1, samples_per_frame)

    return frames


def noise_audio(duration_s: float, seed: int) -> Audio:
    """Noise, as loud as speech is."""

    def frames(model_rate_hz: int, samples_per_frame: int) -> NDArray[np.int16]:
        num_frames = round(duration_s * model_rate_hz / samples_per_frame)
        return _to_pcm(np.random.default_rng(seed).normal(0, 0.05, (num_frames, samples_per_frame)))

    return frames


def repeated(audio: Audio, duration_s: float) -> Audio:
    """The same over and over, for a time."""

    def frames(model_rate_hz: int, samples_per_frame: int) -> NDArray[np.int16]:
        once_NS = audio(model_rate_hz, samples_per_frame)
        num_frames = round(duration_s * model_rate_hz / samples_per_frame)
        return np.resize(once_NS, (num_frames, samples_per_frame))

    return frames


def write_pcm(path: Path, frames: list[bytes], rate_hz: int) -> None:
    """Write 16-bit PCM as a wav file."""
    import soundfile

    soundfile.write(path, np.frombuffer(b"".join(frames), dtype="<i2"), rate_hz, subtype="PCM_16")


def _to_pcm(audio: NDArray[np.floating]) -> NDArray[np.int16]:
    pcm: NDArray[np.int16] = np.clip(np.rint(32768 * audio), -32768, 32767).astype(np.int16)
    return pcm
