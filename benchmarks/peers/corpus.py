"""Shars to load from: spoken dialogues as long as real ones, and many small sources."""

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from s2s_data.blend import read_blend
from tests.s2s_data.builders import dialogues, write_shar

SPOKEN = str(Path(__file__).parents[2] / "demo/corpus/train")
FRAME_S = 0.08
NUM_CODEBOOKS = 8
RATES_HZ = {"recording": 16000, "target_audio": 22050}
MIN_S, MAX_S = 30.0, 60.0
NOISE_FLOOR = 0.0005  # -66 dB of full scale: a quiet room, where the demo's speech has digital silence


def write_duplex_shar(folder: Path, num_dialogues: int, *, shard_size: int = 20, audio_format: str = "flac") -> str:
    """Write two-channel dialogues of 30 to 60 s, as audio and as codes of 12.5 frames a second.

    They are the demo's spoken dialogues, one after the other, with the noise of a quiet room: FLAC takes as long to
    decode as what it holds is complex.
    """
    folder.mkdir(parents=True)
    fields = {"recording": audio_format, "target_audio": audio_format, "target_codes": "numpy"}
    CutSet(_dialogues(num_dialogues)).to_shar(folder, fields=fields, shard_size=shard_size, verbose=False)
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


def _dialogues(number: int) -> Iterator[MonoCut]:
    rng = np.random.default_rng(0)
    spoken = list(read_blend([{"type": "lhotse_shar", "shar_path": SPOKEN}]))
    parts = _endless(spoken)
    for index in range(number):
        wanted_s, chosen = float(rng.uniform(MIN_S, MAX_S)), [next(parts)]
        while sum(part.duration for part in chosen) + (following := next(parts)).duration <= wanted_s:
            chosen.append(following)
        yield _joined(f"d{index:04d}", chosen, rng)


def _endless(spoken: list[MonoCut]) -> Iterator[MonoCut]:
    order = random.Random(0)
    while True:
        yield from order.sample(spoken, len(spoken))


def _joined(cut_id: str, parts: list[MonoCut], rng: np.random.Generator) -> MonoCut:
    duration_s = round(sum(part.duration for part in parts), 2)
    starts_s = np.cumsum([0.0, *(part.duration for part in parts)])
    cut = MonoCut(
        id=cut_id,
        start=0,
        duration=duration_s,
        channel=0,
        recording=_recording(cut_id, "recording", parts, rng),
        supervisions=[
            SupervisionSegment(
                f"{cut_id}-{start_s}-{turn.id}",
                cut_id,
                start=round(float(start_s) + turn.start, 2),
                duration=turn.duration,
                text=turn.text,
                speaker=turn.speaker,
            )
            for part, start_s in zip(parts, starts_s, strict=False)
            for turn in part.supervisions
        ],
    )
    cut.target_audio = _recording(cut_id, "target_audio", parts, rng)
    codes_TK = rng.integers(0, 1024, (round(duration_s / FRAME_S), NUM_CODEBOOKS)).astype(np.int16)
    return cut.attach_tensor("target_codes", codes_TK, frame_shift=FRAME_S, temporal_dim=0)


def _recording(cut_id: str, field: str, parts: list[MonoCut], rng: np.random.Generator) -> Recording:
    rate_hz = RATES_HZ[field]
    audio = [part.load_audio() if field == "recording" else part.load_target_audio() for part in parts]
    audio_S: npt.NDArray[np.float32] = np.concatenate(audio, axis=1)[0]
    audio_S = audio_S + NOISE_FLOOR * rng.standard_normal(len(audio_S), dtype=np.float32)
    wav = io.BytesIO()
    soundfile.write(wav, audio_S, rate_hz, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(wav.getvalue(), f"{cut_id}-{field}")
