"""Small duplex corpora made of tones and noise."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from omegaconf import OmegaConf

from s2s_data import DataConfig, DuplexBatch

SOURCE_RATE_HZ = 16000
TARGET_RATE_HZ = 22050
NUM_CODEBOOKS = 4

# speaker, start in seconds, duration in seconds, text
TurnSpec = tuple[str, float, float, str]


@dataclass(frozen=True)
class WordTokenizer:
    """One id a word, the same in every process."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2

    def text_to_ids(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % 997 for word in text.split()]


DEFAULT_TURNS: tuple[TurnSpec, ...] = (("user", 0.0, 0.8, "what is two"), ("agent", 0.88, 0.72, "it is four"))


def recording(recording_id: str, duration_s: float, rate_hz: int, seed: int) -> Recording:
    noise = np.random.default_rng(seed).uniform(-0.1, 0.1, round(duration_s * rate_hz)).astype(np.float32)
    wav = io.BytesIO()
    soundfile.write(wav, noise, rate_hz, format="WAV", subtype="PCM_16")
    return Recording.from_bytes(wav.getvalue(), recording_id)


def dialogue(
    cut_id: str,
    duration_s: float = 2.0,
    turns: Sequence[TurnSpec] = DEFAULT_TURNS,
    *,
    audio: bool = True,
    codes: bool = False,
    fingerprint: str | None = None,
    source_rate_hz: int = SOURCE_RATE_HZ,
    target_duration_s: float | None = None,
) -> MonoCut:
    """A cut whose audio and codes are a function of its id."""
    seed = zlib.crc32(cut_id.encode())
    cut = MonoCut(
        id=cut_id,
        start=0,
        duration=duration_s,
        channel=0,
        recording=recording(f"{cut_id}-user", duration_s, source_rate_hz, seed),
        supervisions=[
            SupervisionSegment(f"{cut_id}-{number}", cut_id, start, duration, text=text, speaker=speaker)
            for number, (speaker, start, duration, text) in enumerate(turns)
        ],
    )
    if audio:
        cut.target_audio = recording(f"{cut_id}-agent", target_duration_s or duration_s, TARGET_RATE_HZ, seed + 1)
    if codes:
        frames = round(duration_s / 0.08)
        values = np.random.default_rng(seed).integers(0, 100, (frames, NUM_CODEBOOKS))
        cut = cut.attach_tensor("target_codes", values.astype(np.int32), frame_shift=0.08, temporal_dim=0)
    if fingerprint is not None:
        cut.codec_fingerprint = fingerprint
    return cut


def dialogues(prefix: str, count: int, **kwargs: Any) -> list[MonoCut]:
    """Dialogues of 1.6 to 3.2 seconds."""
    return [dialogue(f"{prefix}{i:03d}", 1.6 + 0.32 * (i * 7 % 6), **kwargs) for i in range(count)]


def write_shar(
    folder: Path, cuts: Sequence[MonoCut], *, shard_size: int = 5, codes: bool = False, audio: bool = True
) -> str:
    folder.mkdir(parents=True)
    fields = {"recording": "wav"}
    if audio:
        fields["target_audio"] = "wav"
    if codes:
        fields["target_codes"] = "numpy"
    CutSet(list(cuts)).to_shar(folder, fields=fields, shard_size=shard_size, warn_unused_fields=False)
    return str(folder)


def config(train: dict[str, Any] | None = None, sets: dict[str, Any] | None = None, **data: Any) -> DataConfig:
    """A data config from plain dicts, as an application makes it from YAML."""
    plain: dict[Any, Any] = {
        "train_ds": {"batch_size": 2, **(train or {})},
        "validation_ds": {"batch_size": 2, "datasets": sets or {}},
        **data,
    }
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), plain)
    made = OmegaConf.to_object(merged)
    assert isinstance(made, DataConfig)
    return made


def assert_same_batch(left: DuplexBatch, right: DuplexBatch) -> None:
    assert left.keys() == right.keys()
    for key, value in left.items():
        other = right[key]  # type: ignore[literal-required]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), key
        else:
            assert value == other, key
