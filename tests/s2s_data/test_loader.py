"""Training and validation loaders: who gets which dialogue, and resuming."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from s2s_data import DataError, DuplexBatch, train_dataloader, validation_dataloaders
from s2s_data.loader import TrainStream
from tests.s2s_data.builders import WordTokenizer, assert_same_batch, config, dialogues, write_shar

TOKENIZER = WordTokenizer()


@pytest.fixture(scope="module")
def blend(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Three sources of 20, 12 and 7 dialogues in 4, 3 and 2 shards, weighted, two of them in a group."""
    root = tmp_path_factory.mktemp("blend")
    paths = {name: write_shar(root / name, dialogues(name, count)) for name, count in (("a", 20), ("b", 12), ("c", 7))}
    return [
        {"type": "lhotse_shar", "shar_path": paths["a"], "weight": 0.6},
        {
            "type": "group",
            "weight": 0.4,
            "input_cfg": [
                {"type": "lhotse_shar", "shar_path": paths["b"], "weight": 2, "tags": {"lang": "en"}},
                {"type": "lhotse_shar", "shar_path": paths["c"], "weight": 1},
            ],
        },
    ]


BUCKETING = {
    "use_bucketing": True,
    "num_buckets": 3,
    "bucket_buffer_size": 20,
    "batch_duration": 8.0,
    "batch_size": None,
}
SIMPLE = {"shuffle_buffer_size": 12}


def first(count: int, train: dict[str, Any], **kwargs: Any) -> list[DuplexBatch]:
    return list(islice(train_dataloader(config(train), TOKENIZER, **kwargs), count))


def ids(batches: list[DuplexBatch]) -> list[list[str]]:
    return [batch["cut_ids"] for batch in batches]


@pytest.mark.parametrize("batching", [SIMPLE, BUCKETING], ids=["simple", "bucketing"])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("skip", [1, 6])
def test_defect_16_resumed_run_goes_on_where_it_stopped(
    blend: list[dict[str, Any]], batching: dict[str, Any], num_workers: int, skip: int
) -> None:
    train = {"input_cfg": blend, "num_workers": num_workers, **batching}
    everything = first(skip + 6, train, dp_rank=1, dp_world_size=2)
    remaining = first(6, train, dp_rank=1, dp_world_size=2, skip_batches=skip)
    for resumed, uninterrupted in zip(remaining, everything[skip:], strict=True):
        assert_same_batch(resumed, uninterrupted)
    assert ids(everything[:6]) != ids(everything[skip:])[:6]


@pytest.mark.parametrize("shard_seed", ["randomized", "trng", 7])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_defect_18_ranks_and_workers_never_share_a_dialogue(
    blend: list[dict[str, Any]], shard_seed: str | int, num_workers: int
) -> None:
    train = {"input_cfg": blend, "shard_seed": shard_seed, "num_workers": num_workers, **SIMPLE}
    streams = num_workers or 1  # worker i has each batch whose number mod num_workers is i
    seen: list[set[str]] = [set() for _ in range(3 * streams)]
    loaders = [iter(train_dataloader(config(train), TOKENIZER, dp_rank=rank, dp_world_size=3)) for rank in range(3)]
    number = 0
    # A pass's length is the draw's: small sources are drawn seldom. 2,000 rounds mean that something is never read.
    while number < 2000 and (number < 30 or len(set.union(*seen)) < 39):
        for rank, loader in enumerate(loaders):
            seen[rank * streams + number % streams].update(next(loader)["cut_ids"])
        number += 1
    assert len(set.union(*seen)) == 39
    assert sum(map(len, seen)) == 39


@pytest.mark.parametrize("num_workers", [0, 2])
def test_defect_12_peers_of_one_data_parallel_rank_get_the_same_batches(
    blend: list[dict[str, Any]], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"input_cfg": blend, "num_workers": num_workers, **BUCKETING}
    batches = first(4, train, dp_rank=1, dp_world_size=2)
    monkeypatch.setenv("RANK", "3")  # a tensor-parallel peer has another global rank
    monkeypatch.setenv("WORLD_SIZE", "4")
    for mine, peers in zip(batches, first(4, train, dp_rank=1, dp_world_size=2), strict=True):
        assert_same_batch(mine, peers)


def test_seed_sets_the_order(blend: list[dict[str, Any]]) -> None:
    train = {"input_cfg": blend, **SIMPLE}
    assert ids(first(5, train)) == ids(first(5, train))
    assert ids(first(5, train)) != ids(first(5, {**train, "seed": 1}))
    assert ids(first(5, {**train, "shard_seed": 3})) != ids(first(5, train))


def test_trng_gives_another_order_each_time(blend: list[dict[str, Any]]) -> None:
    train = {"input_cfg": blend, "shard_seed": "trng", **SIMPLE}
    assert ids(first(8, train)) != ids(first(8, train))


def test_sources_are_drawn_by_weight(blend: list[dict[str, Any]]) -> None:
    stream = train_dataloader(config({"input_cfg": blend, **SIMPLE}), TOKENIZER).dataset
    assert isinstance(stream, TrainStream)
    drawn = [cut.id[0] for cuts in islice(stream.cut_batches(0, 1), 500) for cut in cuts]
    shares = {name: drawn.count(name) / len(drawn) for name in "abc"}
    assert shares == pytest.approx({"a": 0.6, "b": 0.4 * 2 / 3, "c": 0.4 / 3}, abs=0.06)


def test_each_pass_reads_every_dialogue_once(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 12))
    batches = first(18, {"shar_path": shar, "shuffle": False})
    read = [cut_id for batch in batches for cut_id in batch["cut_ids"]]
    in_order = [f"d{i:03d}" for i in range(12)]
    assert read == in_order * 3


def test_shards_are_shuffled_anew_in_each_pass(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 6), shard_size=1)
    batches = first(4, {"shar_path": shar, "batch_size": 6, "shuffle_buffer_size": 1})
    orders = {tuple(batch["cut_ids"]) for batch in batches[1:]}  # the buffer swaps the first two of all
    assert all(len(set(order)) == 6 for order in orders)
    assert len(orders) > 1


def test_bucketed_batches_hold_dialogues_of_like_duration(blend: list[dict[str, Any]]) -> None:
    train = {**BUCKETING, "num_buckets": 2, "bucket_duration_bins": [2.5]}
    batches = first(20, {"input_cfg": blend, **train})
    sides = [{bool(samples > 2.5 * 16000) for samples in batch["source_audio_lens"]} for batch in batches]
    assert all(len(side) == 1 for side in sides)
    assert {True} in sides
    assert {False} in sides
    # lhotse stops once another dialogue as long as the longest would exceed the duration
    assert all(batch["source_audio"].numel() <= 8.0 * 16000 * 1.2 for batch in batches)


def test_durations_out_of_range_are_left_out(blend: list[dict[str, Any]]) -> None:
    for batch in first(10, {"input_cfg": blend, "min_duration": 1.9, "max_duration": 2.6, **SIMPLE}):
        assert batch["source_audio_lens"].min() >= 1.9 * 16000
        assert batch["source_audio_lens"].max() <= 2.6 * 16000


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_dialogue_left_is_an_error_and_no_endless_search(tmp_path: Path, num_workers: int) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 5))
    with pytest.raises(DataError, match=r"train_ds.*/shar.*5 dialogues, none of them for stream 0 of"):
        first(1, {"shar_path": shar, "min_duration": 60.0, "num_workers": num_workers})


def test_fewer_dialogues_than_streams_is_an_error(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 3))
    with pytest.raises(DataError, match=r"3 dialogues.* of 8.*smaller num_workers"):
        first(1, {"shar_path": shar, "num_workers": 2}, dp_world_size=4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_defect_11_validation_covers_every_dialogue_once_with_equal_steps(
    tmp_path: Path, world_size: int, num_workers: int
) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 13))
    scored: list[str] = []
    steps = set()
    for rank in range(world_size):
        cfg = config(sets={"heldout": {"shar_path": shar, "num_workers": num_workers}})
        loader = validation_dataloaders(cfg, TOKENIZER, dp_rank=rank, dp_world_size=world_size)["heldout"]
        batches = list(loader)
        assert len(batches) == len(loader)
        steps.add(len(batches))
        scored += [cut_id for batch in batches for cut_id in batch["cut_ids"]]
        assert ids(batches) == ids(list(loader)), "a second validation differs from the first"
    assert sorted(scored) == [f"d{i:03d}" for i in range(13)]
    assert len(steps) == 1


def test_validation_by_duration_covers_every_dialogue_once(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 13))
    sets = {"heldout": {"shar_path": shar, "batch_size": None, "batch_duration": 7.0}}
    ranks = [
        list(validation_dataloaders(config(sets=sets), TOKENIZER, dp_rank=rank, dp_world_size=2)["heldout"])
        for rank in range(2)
    ]
    assert len(ranks[0]) == len(ranks[1])
    assert sorted(c for batches in ranks for b in batches for c in b["cut_ids"]) == [f"d{i:03d}" for i in range(13)]


def test_rank_without_a_dialogue_gets_an_empty_batch_like_its_peers(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 3, codes=True), codes=True)
    cfg = config(sets={"heldout": {"shar_path": shar, "batch_size": 1}})
    full, empty = (
        list(validation_dataloaders(cfg, TOKENIZER, dp_rank=rank, dp_world_size=2)["heldout"])[-1] for rank in (0, 1)
    )
    assert empty["cut_ids"] == []
    assert empty.keys() == full.keys()
    for key, value in full.items():
        if hasattr(value, "dtype"):
            other = empty[key]
            assert other.shape[0] == 0, key
            assert (other.dtype, other.dim()) == (value.dtype, value.dim()), key
    assert empty["target_codes"].shape[2] == full["target_codes"].shape[2]


def test_named_sets_inherit_and_override(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 6, codes=True), codes=True)
    cfg = config(
        sets={
            "plain": {"shar_path": shar},
            "other": {"shar_path": shar, "batch_size": 3, "load_target_audio": False},
        }
    )
    loaders = validation_dataloaders(cfg, TOKENIZER)
    assert list(loaders) == ["plain", "other"]
    plain, other = (next(iter(loader)) for loader in loaders.values())
    assert len(plain["cut_ids"]) == 2
    assert len(other["cut_ids"]) == 3
    assert "target_audio" in plain
    assert "target_codes" in plain
    assert "target_audio" not in other
