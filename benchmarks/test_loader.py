"""The training loader: beside NeMo's on one Shar, its memory, its start with many sources, and a resumed run's.

Each round of ours follows one of NeMo's, so that both have the same share of the machine's noise; the longer run is
`python -m benchmarks.loader_vs_nemo`.
"""

import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loader_memory import draw, resident_mib, small_batches
from benchmarks.peers.corpus import many_sources, write_duplex_shar
from benchmarks.peers.loaders import audio_s_of, audio_s_per_s, contenders, warm
from s2s_data import train_dataloader
from tests.s2s_data.builders import config, dialogues, write_shar
from tests.s2s_data.nemo_reference import CutIds, SharedTokenizer, nemo_dataloader

NUM_DIALOGUES = 60
NUM_BATCHES = 6
NUM_SOURCES = 300
ROUNDS = 2


@pytest.fixture(scope="session")
def shar(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_duplex_shar(tmp_path_factory.mktemp("bench") / "shar", NUM_DIALOGUES)


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return many_sources(tmp_path_factory.mktemp("sources"), NUM_SOURCES)


@pytest.mark.parametrize(
    ("name", "num_workers"), [("ours", 0), ("ours", 2), ("ours, codes", 0)], ids=["audio-0", "audio-2", "codes-0"]
)
def test_load_beside_nemo(benchmark: Any, shar: str, name: str, num_workers: int) -> None:
    pytest.importorskip("nemo.collections.speechlm2.data.s2s_dataset")
    made = contenders(shar, num_workers)
    theirs: list[float] = []
    loaded_s: list[float] = []

    def setup() -> tuple[tuple[Any, int], dict[str, Any]]:
        theirs.append(audio_s_per_s(made["NeMo"], NUM_BATCHES))
        return (warm(made[name]), NUM_BATCHES), {}

    def load(batches: Any, num_batches: int) -> None:
        loaded_s.append(audio_s_of(batches, num_batches))

    benchmark.pedantic(load, setup=setup, rounds=ROUNDS)
    ours = [audio_s / took_s for audio_s, took_s in zip(loaded_s, benchmark.stats.stats.data, strict=True)]
    benchmark.extra_info["audio_s_per_s"] = round(statistics.median(ours))
    benchmark.extra_info["nemo_audio_s_per_s"] = round(statistics.median(theirs))
    ratios = [mine / nemo for mine, nemo in zip(ours, theirs, strict=True)]
    benchmark.extra_info["times_nemo"] = round(statistics.median(ratios), 2)
    assert min(loaded_s) > NUM_BATCHES * 30


def test_memory(benchmark: Any, tmp_path: Path) -> None:
    batches = small_batches(tmp_path)
    draw(batches, 200)
    before_mib = resident_mib()
    benchmark.pedantic(draw, args=(batches, 400), rounds=1)
    benchmark.extra_info["rss_growth_mib"] = round(resident_mib() - before_mib, 2)


@pytest.mark.parametrize("loader", ["ours", "nemo"])
def test_start_of_a_blend_of_300_sources(benchmark: Any, sources: list[dict[str, Any]], loader: str) -> None:
    train = {"input_cfg": sources, "batch_size": 4, "shuffle_buffer_size": 100}
    first_batch = ours_first if loader == "ours" else nemos_first
    if loader == "nemo":
        pytest.importorskip("nemo.collections.common.data.lhotse")
    made_after_s = benchmark.pedantic(first_batch, args=(train,), rounds=1)
    benchmark.extra_info["dataloader_made_after_s"] = round(made_after_s, 2)


def ours_first(train: dict[str, Any]) -> float:
    """Draw a first batch; return after how many seconds the dataloader was made."""
    started_s = time.perf_counter()
    loader = train_dataloader(config(train), SharedTokenizer())
    made_after_s = time.perf_counter() - started_s
    assert len(next(iter(loader))["cut_ids"]) == 4
    return made_after_s


def nemos_first(train: dict[str, Any]) -> float:
    started_s = time.perf_counter()
    loader = nemo_dataloader({**train, "shuffle": True, "shard_seed": 0}, CutIds())
    made_after_s = time.perf_counter() - started_s
    assert len(next(iter(loader))) == 4
    return made_after_s


def test_resume_behind_a_hundred_batches(benchmark: Any, tmp_path: Path) -> None:
    path = write_shar(tmp_path / "shar", dialogues("d", 48))
    cfg = config({"shar_path": path, "batch_size": 4, "shuffle_buffer_size": 24})

    stopped = train_dataloader(cfg, SharedTokenizer())
    draw(iter(stopped), 100)
    state = stopped.state_dict()

    def resume() -> int:
        loader = train_dataloader(cfg, SharedTokenizer())
        loader.load_state_dict(state)
        return len(list(islice(loader, 1)))

    assert benchmark.pedantic(resume, rounds=3, warmup_rounds=1) == 1
