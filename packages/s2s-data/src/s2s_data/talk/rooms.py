"""Noises and rooms to train the user's channel with, made by arithmetic. Shapes: `S` samples at 16 kHz."""

from pathlib import Path

import numpy as np
import soundfile

from s2s_data.demo.voices import ENGINE_RATE_HZ, FloatArray

NOISE_S = 20.0
COLORS = {"white": 0.0, "pink": 0.5, "brown": 1.0}  # the power with which frequencies' amplitudes fall


def noise(color: str, rng: np.random.Generator) -> FloatArray:
    """Noise [S] whose loudness swells and sinks, peak 0.5."""
    num_samples = round(NOISE_S * ENGINE_RATE_HZ)
    spectrum = rng.normal(size=num_samples // 2 + 1) + 1j * rng.normal(size=num_samples // 2 + 1)
    spectrum[1:] /= np.arange(1, len(spectrum)) ** COLORS[color]
    spectrum[0] = 0
    audio_S = np.fft.irfft(spectrum, num_samples)
    swell = np.interp(np.arange(num_samples), np.linspace(0, num_samples, 11), rng.uniform(0.3, 1.0, 11))
    audio_S *= swell
    return np.asarray(audio_S * (0.5 / np.abs(audio_S).max()), dtype=np.float32)


def room(rng: np.random.Generator) -> FloatArray:
    """A room's impulse response [S]: the direct sound, a few walls, and an echo that dies away in 0.1 to 0.5 s."""
    decay_s = rng.uniform(0.1, 0.5)  # to a thousandth
    num_samples = round(decay_s * ENGINE_RATE_HZ)
    times_s = np.arange(num_samples) / ENGINE_RATE_HZ
    response_S = rng.normal(size=num_samples) * 10 ** (-3 * times_s / decay_s) * rng.uniform(0.02, 0.1)
    for _ in range(6):
        response_S[rng.integers(16, num_samples // 3)] += rng.uniform(-0.4, 0.4)
    response_S[0] = 1.0
    return np.asarray(response_S, dtype=np.float32)


def write_surroundings(folder: Path, *, seed: int, num_noises: int = 24, num_rooms: int = 48) -> None:
    """Write `folder`/noise and `folder`/rooms, as `augment` reads them."""
    rng = np.random.default_rng(seed)
    colors = list(COLORS)
    for name, count in (("noise", num_noises), ("rooms", num_rooms)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            audio_S = noise(colors[i % len(colors)], rng) if name == "noise" else room(rng)
            soundfile.write(folder / name / f"{i:03d}.flac", audio_S * 0.9, ENGINE_RATE_HZ)
