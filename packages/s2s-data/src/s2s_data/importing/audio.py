"""Reading, placing and resampling audio files. Shapes: ``C`` channels, ``S`` samples."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse.augmentation import get_or_create_resampler

from s2s_data.importing.recorded import Channel, DialogueError, FloatArray


def read_file(path: Path, offset_s: float = 0.0, duration_s: float | None = None) -> tuple[FloatArray, int]:
    """Read an audio file, or a part of it: ([C, S] float32, rate in Hz).

    Raises :class:`DialogueError` if it is missing, can't be read, is shorter than the part, is empty, or holds
    samples that aren't finite.
    """
    if not path.is_file():
        raise DialogueError("missing audio", f"{path}: no such file: check the path, or take its line out")
    try:
        with soundfile.SoundFile(path) as file:
            rate_hz, first = file.samplerate, round(offset_s * file.samplerate)
            wanted = file.frames - first if duration_s is None else round(duration_s * rate_hz)
            if first < 0 or wanted <= 0 or first + wanted > file.frames + rate_hz // 100:  # 10 ms for rounding
                raise DialogueError(
                    "outside the audio",
                    f"{path}: lasts {file.frames / rate_hz:.2f} s and has no audio at {offset_s:.2f} s for "
                    f"{wanted / rate_hz:.2f} s: correct offset and duration",
                )
            file.seek(first)
            audio_CS = file.read(wanted, dtype="float32", always_2d=True).T
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        raise DialogueError("unreadable audio", f"{path}: can't be read: {error}: convert it to WAV or FLAC") from error
    if not np.isfinite(audio_CS).all():
        raise DialogueError("unreadable audio", f"{path}: holds samples that aren't finite: write it anew")
    return audio_CS, rate_hz


def read_mono(path: Path, offset_s: float = 0.0, duration_s: float | None = None) -> Channel:
    """Read a one-channel file, or a part of it; raises :class:`DialogueError`, for more channels too."""
    audio_CS, rate_hz = read_file(path, offset_s, duration_s)
    if len(audio_CS) != 1:
        raise DialogueError(
            "too many channels",
            f"{path}: has {len(audio_CS)} channels, but holds one side of a dialogue: give a file with one",
        )
    return Channel(audio_CS[0], rate_hz)


def read_stereo(path: Path, agent_channel: int) -> tuple[Channel, Channel]:
    """Read a two-channel file: the user's channel and the agent's; raises :class:`DialogueError`."""
    audio_CS, rate_hz = read_file(path)
    if len(audio_CS) == 1:
        raise DialogueError("mono audio", f"{path}: has one channel, but each side needs its own: record both apart")
    if len(audio_CS) != 2:
        raise DialogueError(
            "too many channels", f"{path}: has {len(audio_CS)} channels, but must have two: mix it down"
        )
    if np.array_equal(audio_CS[0], audio_CS[1]):
        raise DialogueError(
            "mono audio", f"{path}: both channels are the same, so it is a mono recording: record both sides apart"
        )
    return Channel(audio_CS[1 - agent_channel], rate_hz), Channel(audio_CS[agent_channel], rate_hz)


def resample(channel: Channel, rate_hz: int) -> FloatArray:
    """Bring a channel to ``rate_hz``: [S] float32."""
    if channel.rate_hz == rate_hz:
        return channel.samples_S
    resampler = get_or_create_resampler(channel.rate_hz, rate_hz)
    audio_S: FloatArray = resampler(torch.from_numpy(channel.samples_S)[None])[0].numpy()
    return audio_S


def fit(samples_S: FloatArray, num_samples: int) -> FloatArray:
    """Cut or pad with silence to ``num_samples``."""
    fitted = np.zeros(num_samples, dtype=np.float32)
    fitted[: len(samples_S)] = samples_S[:num_samples]
    return fitted
