"""Training and validation loaders: who gets which dialogue, and resuming."""

import gzip
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse.cut import Cut

from s2s_data import DataError, DuplexBatch, train_dataloader, validation_dataloaders
from s2s_data.shar import Shard
from tests.s2s_data.builders import WordTokenizer, assert_same_batch, config, dialogue, dialogues, write_shar

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


def after(state: str, count: int, train: dict[str, Any], **kwargs: Any) -> list[DuplexBatch]:
    """What a loader gives that goes on from a saved state."""
    loader = train_dataloader(config(train), TOKENIZER, **kwargs)
    loader.load_state_dict(json.loads(state))
    return list(islice(loader, count))


def stopped_after(count: int, train: dict[str, Any], **kwargs: Any) -> str:
    loader = train_dataloader(config(train), TOKENIZER, **kwargs)
    assert len(list(islice(loader, count))) == count
    return json.dumps(loader.state_dict())


@pytest.mark.parametrize("batching", [SIMPLE, BUCKETING], ids=["simple", "bucketing"])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_defect_16_first_k_and_remaining_are_all(
    blend: list[dict[str, Any]], batching: dict[str, Any], num_workers: int, rank: int
) -> None:
    train = {"input_cfg": blend, "num_workers": num_workers, **batching}
    place = {"dp_rank": rank, "dp_world_size": 2}
    everything = first(40, train, **place)
    assert ids(everything[:6]) != ids(everything[6:12])
    for count in (0, 1, 2, 7, 31):  # within the first window, and some windows on
        state = stopped_after(count, train, **place)
        for resumed, uninterrupted in zip(after(state, 6, train, **place), everything[count:], strict=False):
            assert_same_batch(resumed, uninterrupted)


def test_defect_16_resume_in_a_new_process(blend: list[dict[str, Any]]) -> None:
    train = {"input_cfg": blend, "num_workers": 2, **BUCKETING}
    place = {"dp_rank": 1, "dp_world_size": 2}
    everything = first(12, train, **place)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        state = other.submit(stopped_after, 5, train, **place).result()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        remaining = other.submit(after, state, 7, train, **place).result()
    for resumed, uninterrupted in zip(remaining, everything[5:], strict=True):
        assert_same_batch(resumed, uninterrupted)


def test_a_resumed_trng_run_goes_on_in_its_order(blend: list[dict[str, Any]]) -> None:
    train = {"input_cfg": blend, "shard_seed": "trng", **SIMPLE}
    loader = iter(uncut := train_dataloader(config(train), TOKENIZER))
    next(loader)
    state = json.dumps(uncut.state_dict())
    assert ids(after(state, 3, train)) == ids(list(islice(loader, 3)))


@pytest.mark.parametrize(
    ("change", "place", "named"),
    [
        ({"num_workers": 1}, {}, "num_workers"),
        ({}, {"dp_rank": 0, "dp_world_size": 2}, "data-parallel ranks"),
        ({"batch_size": 3}, {}, "config of data.train_ds"),
    ],
)
def test_what_can_not_be_resumed_exactly_is_said(
    blend: list[dict[str, Any]],
    change: dict[str, Any],
    place: dict[str, int],
    named: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train = {"input_cfg": blend, "num_workers": 2, **SIMPLE}
    state = stopped_after(3, train)
    assert not caplog.records
    batches = after(state, 3, {**train, **change}, **place)
    assert named in caplog.text
    assert "new order" in caplog.text
    assert ids(batches) != ids(first(3, {**train, **change}, **place)), "the first dialogues would come again"


def test_resume_reads_no_more_than_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 40), shard_size=4)
    train = {"shar_path": shar, "shuffle_buffer_size": 8}
    opened: list[str] = []
    rows = Shard.rows

    def noting(shard: Shard, start: int = 0) -> Iterator[tuple[int, Cut]]:
        opened.append(shard.paths["cuts"])
        return rows(shard, start)

    monkeypatch.setattr(Shard, "rows", noting)

    def shards_opened(count: int) -> int:
        state = stopped_after(count, train)
        loader = train_dataloader(config(train), TOKENIZER)
        loader.load_state_dict(json.loads(state))
        opened.clear()
        next(iter(loader))
        return len(opened)

    # 8 dialogues lie in 3 shards at most, another window is read ahead, and passes end; a replay would open 200
    assert shards_opened(400) <= 10


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
    stream = train_dataloader(config({"input_cfg": blend, **SIMPLE}), TOKENIZER).stream
    drawn = [ref.cut.id[0] for refs, _ in islice(stream.planned(0), 500) for ref in refs]
    shares = {name: drawn.count(name) / len(drawn) for name in "abc"}
    assert shares == pytest.approx({"a": 0.6, "b": 0.4 * 2 / 3, "c": 0.4 / 3}, abs=0.005)


def test_each_pass_reads_every_dialogue_once(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 12))
    batches = first(18, {"shar_path": shar, "shuffle": False})
    read = [cut_id for batch in batches for cut_id in batch["cut_ids"]]
    in_order = [f"d{i:03d}" for i in range(12)]
    assert read == in_order * 3


def test_shards_are_shuffled_anew_in_each_pass(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 6), shard_size=1)
    batches = first(12, {"shar_path": shar, "batch_size": 2, "shuffle_buffer_size": 2})
    passes = [[frozenset(batch["cut_ids"]) for batch in batches[start : start + 3]] for start in range(0, 12, 3)]
    assert all(len(frozenset.union(*neighbours)) == 6 for neighbours in passes)
    assert len({frozenset(neighbours) for neighbours in passes}) > 1, "the same dialogues meet in each pass"


def padding(batches: list[DuplexBatch]) -> float:
    lens = sum(int(batch["source_audio_lens"].sum()) for batch in batches)
    return 1 - lens / sum(batch["source_audio"].numel() for batch in batches)


def test_bucketed_batches_hold_dialogues_of_like_duration(blend: list[dict[str, Any]]) -> None:
    bucketed = first(40, {"input_cfg": blend, **BUCKETING, "bucket_duration_bins": [1.7, 2.0, 2.3, 2.6, 3.0]})
    assert padding(bucketed) < 0.05 < padding(first(40, {"input_cfg": blend, "batch_size": 3, **SIMPLE}))
    assert all(batch["source_audio"].numel() <= 8.0 * 16000 for batch in bucketed)


def test_buckets_with_batch_sizes_of_their_own(blend: list[dict[str, Any]]) -> None:
    train = {"use_bucketing": True, "bucket_duration_bins": [2.0, 2.7], "bucket_batch_size": [4, 2], "batch_size": None}
    batches = first(30, {"input_cfg": blend, **train})
    longest = [float(batch["source_audio_lens"].max()) / 16000 for batch in batches]
    assert max(longest) <= 2.7, "what is longer than the last bucket is left out"
    assert all(len(batch["cut_ids"]) <= 2 for batch, s in zip(batches, longest, strict=True) if s > 2.0)
    assert any(len(batch["cut_ids"]) == 4 for batch in batches)


def test_buckets_in_two_dimensions(tmp_path: Path) -> None:
    turns = [("user", 0.0, 0.5, "hi"), ("agent", 0.6, 1.0, "one two three four five six")]
    talkative = [dialogue(f"t{i}", 2.0, turns) for i in range(8)]
    terse = [dialogue(f"q{i}", 2.0, [turns[0], ("agent", 0.6, 1.0, "yes")]) for i in range(8)]
    shar = write_shar(tmp_path / "shar", [cut for pair in zip(talkative, terse, strict=True) for cut in pair])
    train = {"use_bucketing": True, "bucket_duration_bins": [[4.0, 3], [4.0, 9]], "batch_size": 4}
    for batch in first(8, {"shar_path": shar, **train}):
        assert len({cut_id[0] for cut_id in batch["cut_ids"]}) == 1


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"bucket_duration_bins": [3.0, 2.0]}, "must ascend"),
        ({"bucket_duration_bins": [3.0, [4.0, 5]]}, "durations, or pairs"),
        ({"bucket_batch_size": [2]}, "bucket_batch_size needs bucket_duration_bins"),
        ({"bucket_duration_bins": [3.0], "bucket_batch_size": [2, 1]}, "2 sizes and bucket_duration_bins 1 bounds"),
        ({"bucket_duration_bins": [3.0], "bucket_batch_size": [0]}, "numbers above 0"),
    ],
)
def test_wrong_buckets(blend: list[dict[str, Any]], train: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        first(1, {"input_cfg": blend, "use_bucketing": True, **train})


def test_durations_out_of_range_are_left_out(blend: list[dict[str, Any]]) -> None:
    for batch in first(10, {"input_cfg": blend, "min_duration": 1.9, "max_duration": 2.6, **SIMPLE}):
        assert batch["source_audio_lens"].min() >= 1.9 * 16000
        assert batch["source_audio_lens"].max() <= 2.6 * 16000


def test_what_is_left_out_is_counted_by_source_and_reason(
    blend: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    list(first(20, {"input_cfg": blend, "min_duration": 1.9, "max_tps": 1.4, **SIMPLE}))
    lines = [record.message for record in caplog.records if "left out so far" in record.message]
    assert any("/a" in line and "shorter than min_duration 1.9 s" in line for line in lines)
    assert any("above max_tps 1.4" in line for line in lines)


def test_tokens_a_second_out_of_range_are_left_out(tmp_path: Path) -> None:
    cuts = [dialogue(f"d{n}", 2.0, [("user", 0, 0.5, "hi"), ("agent", 0.6, 1.2, "word " * n)]) for n in range(1, 9)]
    shar = write_shar(tmp_path / "shar", cuts)
    batches = first(8, {"shar_path": shar, "min_tps": 1.5, "max_tps": 3.0})
    assert {cut_id for batch in batches for cut_id in batch["cut_ids"]} == {"d3", "d4", "d5", "d6"}


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


def test_a_window_holds_no_audio(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 20))
    stream = train_dataloader(config({"shar_path": shar}), TOKENIZER).stream
    refs = [ref for refs, _ in islice(stream.planned(0), 10) for ref in refs]
    assert {ref.load().recording.sources[0].type for ref in refs} == {"memory"}
    assert {ref.cut.recording.sources[0].type for ref in refs} == {"shar"}


@pytest.mark.parametrize("num_workers", [0, 3])
def test_batches_of_a_small_corpus_are_full(tmp_path: Path, num_workers: int) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 20))
    batches = first(12, {"shar_path": shar, "batch_size": 8, "num_workers": num_workers})
    assert {len(batch["cut_ids"]) for batch in batches} == {8}


def test_role_swap_at_equal_rates_swaps_the_audio(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4))
    plain = {"shar_path": shar, "shuffle": False, "batch_size": 4}
    data: dict[str, Any] = {"target_sample_rate": 16000}
    loaded = [
        next(iter(train_dataloader(config({**plain, **more}, **data), TOKENIZER)))
        for more in ({}, {"augment": {"role_swap": {"prob": 1.0}}})
    ]
    before, after_swap = loaded
    assert torch.equal(after_swap["source_audio"], before["target_audio"])
    assert torch.equal(after_swap["target_audio"], before["source_audio"])


def test_rank_without_a_dialogue_knows_codes_that_the_manifest_does_not(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 3, codes=True), codes=True)
    for manifest in Path(shar).glob("cuts.*"):
        cuts = [json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines()]
        for cut in cuts:
            del cut["custom"]["target_codes"]
        manifest.write_bytes(gzip.compress("\n".join(map(json.dumps, cuts)).encode()))
    cfg = config(sets={"heldout": {"shar_path": shar, "batch_size": 1}})
    full, empty = (
        list(validation_dataloaders(cfg, TOKENIZER, dp_rank=rank, dp_world_size=2)["heldout"])[-1] for rank in (0, 1)
    )
    assert empty["cut_ids"] == []
    assert "target_codes" in full
    assert empty.keys() == full.keys()


def test_a_shard_more_is_said_on_resume_and_another_folder_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 20))
    state = stopped_after(3, {"shar_path": shar})
    everything = first(8, {"shar_path": shar})
    copy = shutil.copytree(shar, tmp_path / "scratch" / "elsewhere")
    assert ids(after(state, 5, {"shar_path": str(copy)})) == ids(everything[3:])
    assert not caplog.records
    more = write_shar(tmp_path / "more", dialogues("e", 5))
    for file in Path(more).iterdir():
        shutil.copy(file, copy / file.name.replace("000000", "000004"))
    after(state, 1, {"shar_path": str(copy)})
    assert "the data or the config" in caplog.text


def test_a_validation_of_text_alone_is_refused_before_it_begins(tmp_path: Path) -> None:
    cuts = dialogues("cut", 3)
    cuts[2].custom["text_only"] = True
    sets = {"heldout": {"shar_path": write_shar(tmp_path / "heldout", cuts)}}
    with pytest.raises(DataError, match=r"datasets\.heldout: cut cut002 is text alone \(text_only\), .*: take it out"):
        validation_dataloaders(config(sets=sets), TOKENIZER)
