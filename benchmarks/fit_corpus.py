"""Shars of noise with stored codes, as many processes write them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from benchmarks.peer_size import CODEBOOKS, FRAME_S, SOURCE_HZ, SOURCE_SAMPLES

SHARD_SIZE = 24  # dialogues
WORDS_A_SECOND = 3
CODES = 2016
# Noise doesn't compress, and takes longer to decode than speech; this is -20 dB of full scale.
LOUDNESS = 0.1


def write_shar(
    folder: Path, name: str, shortest_s: float, longest_s: float, num_dialogues: int, vocab_size: int
) -> None:
    """Write `folder/name`: dialogues of lengths drawn evenly, FLAC of the user and codes of `folder/codec.nemo`."""
    from s2s_model.codecs import load_codec

    fingerprint = load_codec(str(folder / "codec.nemo"), key="codec").fingerprint
    (folder / name).mkdir()
    shard = partial(_write_shard, folder / name, (shortest_s, longest_s), vocab_size, fingerprint)
    begins = range(0, num_dialogues, SHARD_SIZE)
    counts = [min(SHARD_SIZE, num_dialogues - begin) for begin in begins]
    with ProcessPoolExecutor(cpu_count(), mp_context=get_context("spawn")) as pool:
        list(pool.map(shard, range(len(begins)), counts))


def _write_shard(
    folder: Path, range_s: tuple[float, float], vocab_size: int, fingerprint: str, index: int, num_dialogues: int
) -> None:
    """Shards are numbered by hand: a CutSet of a shard's size makes one."""
    made = folder / f"part{index}"
    made.mkdir()
    cuts = CutSet(list(_dialogues(range_s, vocab_size, fingerprint, index, num_dialogues)))
    fields = {"recording": "flac", "target_codes": "numpy"}
    cuts.to_shar(made, fields=fields, shard_size=num_dialogues, verbose=False)
    for file in made.iterdir():
        file.rename(folder / file.name.replace(".000000.", f".{index:06d}."))
    made.rmdir()


def _dialogues(
    range_s: tuple[float, float], vocab_size: int, fingerprint: str, shard: int, num_dialogues: int
) -> Iterator[MonoCut]:
    rng = np.random.default_rng(shard)
    for i in range(num_dialogues):
        frames = round(float(rng.uniform(*range_s)) / FRAME_S)
        cut = _dialogue(f"d{shard:03d}-{i:03d}", frames, vocab_size, rng)
        cut.codec_fingerprint = fingerprint
        codes_TK = rng.integers(0, CODES, (frames, CODEBOOKS)).astype(np.int16)
        yield cut.attach_tensor("target_codes", codes_TK, frame_shift=FRAME_S, temporal_dim=0)


def _dialogue(cut_id: str, frames: int, vocab_size: int, rng: np.random.Generator) -> MonoCut:
    """The user speaks in the first quarter, the agent in the next two."""
    duration_s = frames * FRAME_S
    audio_S = (LOUDNESS * rng.standard_normal(frames * SOURCE_SAMPLES)).astype(np.float32)
    wav = io.BytesIO()
    soundfile.write(wav, audio_S, SOURCE_HZ, format="WAV", subtype="PCM_16")
    turns = [
        _turn(cut_id, "user", (0.0, 0.2 * duration_s), vocab_size, rng),
        _turn(cut_id, "agent", (0.25 * duration_s, 0.5 * duration_s), vocab_size, rng),
    ]
    recording = Recording.from_bytes(wav.getvalue(), cut_id)
    return MonoCut(id=cut_id, start=0, duration=recording.duration, channel=0, recording=recording, supervisions=turns)


def _turn(
    cut_id: str, speaker: str, place_s: tuple[float, float], vocab_size: int, rng: np.random.Generator
) -> SupervisionSegment:
    start_s, duration_s = place_s
    words = rng.integers(4, vocab_size, max(int(duration_s * WORDS_A_SECOND), 1))
    return SupervisionSegment(
        f"{cut_id}-{speaker}",
        cut_id,
        start=round(start_s, 3),
        duration=round(duration_s, 3),
        text=" ".join(f"w{word}" for word in words),
        speaker=speaker,
    )
