"""Shars to load from: dialogues that decode as slowly as real ones do, and many small sources."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from tests.s2s_data.builders import dialogues, write_shar

FRAME_S = 0.08
NUM_CODEBOOKS = 8
RATES_HZ = {"user": 16000, "agent": 22050}
WORDS_PER_S = 2.5
MIN_S, MAX_S = 30.0, 60.0
POOL_S = 60.0  # noise from which all dialogues are cut, at random places
NOISE_FLOOR = 0.002

Noise = dict[str, npt.NDArray[np.float32]]


def write_duplex_shar(folder: Path, num_dialogues: int, *, shard_size: int = 20) -> str:
    """Write two-channel dialogues of 30 to 60 s, as FLAC and as codes of 12.5 frames a second."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    noise = {speaker: _speech_like_noise(rate_hz, rng) for speaker, rate_hz in RATES_HZ.items()}
    fields = {"recording": "flac", "target_audio": "flac", "target_codes": "numpy"}
    cuts = CutSet(_dialogue(f"d{number:04d}", noise, rng) for number in range(num_dialogues))
    cuts.to_shar(folder, fields=fields, shard_size=shard_size, verbose=False)
    return str(folder)


def many_sources(folder: Path, num_sources: int) -> list[dict[str, Any]]:
    """Return a blend of many small Shars: links to one, as only their number matters."""
    first = Path(write_shar(folder / "source0", dialogues("d", 12), shard_size=4))
    for number in range(1, num_sources):
        other = folder / f"source{number}"
        other.mkdir()
        for file in first.iterdir():
            os.link(file, other / file.name)
    return [
        {"type": "lhotse_shar", "shar_path": str(folder / f"source{number}"), "weight": 1 + number % 7}
        for number in range(num_sources)
    ]


def _speech_like_noise(rate_hz: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Noise with the spectrum and the syllables of speech, roughly: FLAC spends its time on both."""
    num_samples = int(POOL_S * rate_hz)
    frequencies_hz = np.fft.rfftfreq(num_samples, 1 / rate_hz)
    spectrum = np.fft.rfft(rng.standard_normal(num_samples)) / np.maximum(frequencies_hz, 200)
    noise = np.fft.irfft(spectrum, num_samples)
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(num_samples) / rate_hz)
    return np.asarray(0.1 * syllables * noise / noise.std(), dtype=np.float32)


def _dialogue(cut_id: str, noise: Noise, rng: np.random.Generator) -> MonoCut:
    duration_s = round(rng.uniform(MIN_S, MAX_S) / FRAME_S) * FRAME_S
    turns = _turns(cut_id, duration_s, rng)
    cut = MonoCut(
        id=cut_id,
        start=0,
        duration=duration_s,
        channel=0,
        recording=_recording(cut_id, "user", duration_s, turns, noise, rng),
        supervisions=turns,
    )
    cut.target_audio = _recording(cut_id, "agent", duration_s, turns, noise, rng)
    codes_TK = rng.integers(0, 1024, (round(duration_s / FRAME_S), NUM_CODEBOOKS)).astype(np.int16)
    return cut.attach_tensor("target_codes", codes_TK, frame_shift=FRAME_S, temporal_dim=0)


def _turns(cut_id: str, duration_s: float, rng: np.random.Generator) -> list[SupervisionSegment]:
    turns: list[SupervisionSegment] = []
    time_s = 0.4
    while (length_s := float(rng.uniform(2, 8))) + time_s < duration_s:
        text = " ".join(f"w{word}" for word in rng.integers(0, 1000, int(length_s * WORDS_PER_S)))
        speaker = ("user", "agent")[len(turns) % 2]
        turns.append(SupervisionSegment(f"{cut_id}-{len(turns)}", cut_id, time_s, length_s, text=text, speaker=speaker))
        time_s += length_s + float(rng.uniform(-0.3, 1.0))
    return turns


def _recording(
    cut_id: str,
    speaker: str,
    duration_s: float,
    turns: list[SupervisionSegment],
    noise: Noise,
    rng: np.random.Generator,
) -> Recording:
    rate_hz = RATES_HZ[speaker]
    num_samples = round(duration_s * rate_hz)
    audio_S = NOISE_FLOOR * rng.standard_normal(num_samples, dtype=np.float32)
    for turn in turns:
        if turn.speaker == speaker:
            begin, length = int(turn.start * rate_hz), int(turn.duration * rate_hz)
            offset = int(rng.integers(0, len(noise[speaker]) - length))
            audio_S[begin : begin + length] += noise[speaker][offset : offset + length]
    wav = io.BytesIO()
    soundfile.write(wav, audio_S, rate_hz, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(wav.getvalue(), f"{cut_id}-{speaker}")
