"""Bad data is skipped, named and counted, and ends the run only past a share."""

import gzip
import json
import logging
import random
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from s2s_data import DataError, UnreadableCutError, loader, train_dataloader, validation_dataloaders
from s2s_data.loading import UnreadableCuts
from tests.s2s_data.builders import WordTokenizer, assert_same_batch, config, dialogues, write_shar

TOKENIZER = WordTokenizer()


def corrupt(shar: str, field: str, cut_id: str) -> None:
    """Overwrite the audio of one cut within its tar."""
    for tar in Path(shar).glob(f"{field}.*.tar"):
        data = bytearray(tar.read_bytes())
        at = data.find(f"{cut_id}.wav".encode())
        if at >= 0:
            start = at // 512 * 512 + 512  # data follows its header of 512 bytes
            data[start : start + 64] = b"\x00" * 64
            tar.write_bytes(data)
            return
    raise AssertionError(f"no {cut_id} in {shar}")


@pytest.fixture
def shar(tmp_path: Path) -> str:
    folder = write_shar(tmp_path / "shar", dialogues("d", 20))
    corrupt(folder, "recording", "d003")
    return folder


def load(shar: str, count: int, **train: Any) -> list[Any]:
    return list(islice(train_dataloader(config({"shar_path": shar, **train}), TOKENIZER), count))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_dialogue_is_skipped_and_the_others_come(shar: str, num_workers: int) -> None:
    batches = load(shar, 50, num_workers=num_workers, max_unreadable_share=0.2)
    seen = {cut_id for batch in batches for cut_id in batch["cut_ids"]}
    assert seen == {f"d{i:03d}" for i in range(20)} - {"d003"}
    assert all(batch["source_audio"].abs().sum() > 0 for batch in batches)


def test_it_is_named_once_and_counted(shar: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(shar, 30, max_unreadable_share=0.2)
    lines = [record.message for record in caplog.records if "d003" in record.message]
    assert len(lines) == 1
    assert "can't read its recording" in lines[0]
    assert "1 so far" in lines[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_past_the_share_the_run_ends_in_one_line(tmp_path: Path, num_workers: int) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 12))
    for cut_id in ("d001", "d004", "d005"):
        corrupt(shar, "target_audio", cut_id)
    with pytest.raises(
        DataError, match=r"\d of the \d+ dialogues.*max_unreadable_share=0.01.*s2s-data check"
    ) as caught:
        load(shar, 20, num_workers=num_workers)
    assert "\n" not in str(caught.value)


def test_none_is_allowed_with_a_share_of_0(shar: str) -> None:
    with pytest.raises(DataError, match="d003"):
        load(shar, 20, max_unreadable_share=0.0)


def test_a_tar_that_was_cut_short_loses_its_last_dialogues_only(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 10))
    tar = Path(shar) / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    batches = load(shar, 40, max_unreadable_share=1.0)
    seen = {cut_id for batch in batches for cut_id in batch["cut_ids"]}
    assert {f"d{i:03d}" for i in range(6)} <= seen < {f"d{i:03d}" for i in range(10)}


def test_resume_is_exact_behind_an_unreadable_dialogue(shar: str) -> None:
    cfg = config({"shar_path": shar, "batch_size": 1, "max_unreadable_share": 1.0})
    everything = list(islice(train_dataloader(cfg, TOKENIZER), 45))
    for count in range(1, 40, 7):
        stopped = train_dataloader(cfg, TOKENIZER)
        list(islice(stopped, count))
        resumed = train_dataloader(cfg, TOKENIZER)
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert_same_batch(next(iter(resumed)), everything[count])


def test_a_validation_step_without_a_readable_dialogue_is_empty_not_repeated(shar: str) -> None:
    cfg = config(sets={"heldout": {"shar_path": shar, "batch_size": 1}})
    batches = list(validation_dataloaders(cfg, TOKENIZER)["heldout"])
    assert [batch["cut_ids"] for batch in batches] == [[f"d{i:03d}"] if i != 3 else [] for i in range(20)]


def break_manifests(shar: str, count: int) -> None:
    for manifest in sorted(Path(shar).glob("cuts.*"))[-count:]:
        lines = gzip.decompress(manifest.read_bytes()).splitlines()
        manifest.write_bytes(gzip.compress(b"\n".join([lines[0], b"{broken", *lines[2:]])))


def test_what_a_broken_shard_loses_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 40), shard_size=5)
    break_manifests(shar, 1)
    seen = {cut_id for batch in load(shar, 60, max_unreadable_share=0.5) for cut_id in batch["cut_ids"]}
    assert seen == {f"d{i:03d}" for i in range(36)}
    assert "the rest of a shard is skipped" in caplog.text
    break_manifests(shar, 7)
    with pytest.raises(DataError, match=r"Shar shard.*max_unreadable_share=0.01"):
        load(shar, 60)


def test_nothing_readable_ends_whatever_the_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_SKIPPED", 20)
    shar = write_shar(tmp_path / "shar", dialogues("d", 4))
    for cut_id in ("d000", "d001", "d002", "d003"):
        corrupt(shar, "recording", cut_id)
    with pytest.raises(DataError, match=r"none of 2\d dialogues in a row"):
        load(shar, 1, max_unreadable_share=1.0)


def test_a_share_is_judged_with_room_for_chance() -> None:
    unreadable = UnreadableCuts(0.01, "data.train_ds")
    rng = random.Random(0)
    for number in range(20_000):  # as many as the share allows, spread by chance
        unreadable.num_read += 1
        if rng.random() < 0.008:
            unreadable.add(str(number), UnreadableCutError("broken"))
    unreadable.num_unreadable += 200  # twice the share
    with pytest.raises(DataError, match="360 of the 20000 dialogues"):
        unreadable.add("one more", UnreadableCutError("broken"))
