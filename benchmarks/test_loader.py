"""Batches a second from Shar: with audio, with stored codes, with a worker, and when a resumed run skips."""

from itertools import islice
from typing import Any

import pytest

from s2s_data import train_dataloader
from tests.s2s_data.builders import WordTokenizer, config, dialogue, write_shar

NUM_BATCHES = 20
TURNS = [
    ("user", 0.0, 3.2, "what is two and two"),
    ("agent", 4.0, 4.0, "two and two is four"),
    ("user", 9.0, 3.0, "thanks"),
]


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> str:
    cuts = [dialogue(f"d{i}", 12.0 + 0.8 * (i % 11), TURNS, codes=True) for i in range(48)]
    return write_shar(tmp_path_factory.mktemp("bench") / "shar", cuts, shard_size=12, codes=True)


def batches(shar: str, train: dict[str, Any], count: int, skip_batches: int = 0) -> float:
    """Load `count` batches; return how many seconds of dialogue they hold."""
    cfg = config({"shar_path": shar, "batch_size": 4, "shuffle_buffer_size": 24, **train})
    loader = train_dataloader(cfg, WordTokenizer(), skip_batches=skip_batches)
    return sum(int(batch["source_audio_lens"].sum()) / 16000 for batch in islice(loader, count))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("audio", [True, False], ids=["audio", "codes"])
def test_load(benchmark: Any, shar: str, audio: bool, num_workers: int) -> None:
    train = {"load_target_audio": audio, "num_workers": num_workers}
    seconds = benchmark.pedantic(batches, args=(shar, train, NUM_BATCHES), rounds=3, warmup_rounds=1)
    benchmark.extra_info["audio_s_per_s"] = round(seconds / benchmark.stats.stats.mean)
    assert seconds > NUM_BATCHES * 4 * 12


def test_load_bucketed(benchmark: Any, shar: str) -> None:
    train = {
        "use_bucketing": True,
        "num_buckets": 4,
        "bucket_buffer_size": 24,
        "batch_size": None,
        "batch_duration": 80,
    }
    assert benchmark.pedantic(batches, args=(shar, train, NUM_BATCHES), rounds=3, warmup_rounds=1) > 0


def test_resume_behind_a_hundred_batches(benchmark: Any, shar: str) -> None:
    assert benchmark.pedantic(batches, args=(shar, {}, 1, 100), rounds=3, warmup_rounds=1) > 0
