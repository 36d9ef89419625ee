"""Finding and mixing data, and what is said where there is none."""

import gzip
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from lhotse import CutSet, Recording
from omegaconf import OmegaConf

from s2s_data import DataError, read_blend, train_dataloader, validation_dataloaders
from tests.s2s_data.builders import WordTokenizer, config, dialogue, dialogues, write_shar

TOKENIZER = WordTokenizer()


def train(**train_ds: Any) -> list[str]:
    batches = iter(train_dataloader(config({"shuffle": False, "batch_size": 1, **train_ds}), TOKENIZER))
    try:
        return [cut_id for batch in islice(batches, 12) for cut_id in batch["cut_ids"]]
    finally:
        # After a worker's error torch leaves a reference cycle; collected later, it waits 5 s for the worker.
        if train_ds.get("num_workers"):
            batches._shutdown_workers()  # type: ignore[attr-defined]


def shar_entry(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "lhotse_shar", "shar_path": path, **more}


def test_blend_in_a_yaml_file(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4))
    OmegaConf.save(OmegaConf.create([shar_entry(shar)]), tmp_path / "blend.yaml")
    assert train(input_cfg=str(tmp_path / "blend.yaml"))[:4] == ["d000", "d001", "d002", "d003"]


def test_every_way_to_name_a_shar(tmp_path: Path) -> None:
    first = write_shar(tmp_path / "s0", dialogues("a", 4), shard_size=2)
    second = write_shar(tmp_path / "s1", dialogues("b", 2))
    fields = {
        field: [f"{first}/{field}.00000{{0..1}}.{end}"]
        for field, end in (("cuts", "jsonl.gz"), ("recording", "tar"), ("target_audio", "tar"))
    }
    nemo_fields = {field: paths[0].replace("{0..1}", "_OP_0..1_CL_") for field, paths in fields.items()}
    for one in (first, fields, nemo_fields):
        assert set(train(shar_path=one)) == {"a000", "a001", "a002", "a003"}
    for several in ([first, second], f"{tmp_path}/s*", f"{tmp_path}/s{{0..1}}", [[first, 1], [second, 3.0]]):
        cfg = config(sets={"all": {"shar_path": several}})
        batches = list(validation_dataloaders(cfg, TOKENIZER)["all"])
        assert [c for b in batches for c in b["cut_ids"]] == ["a000", "a001", "a002", "a003", "b000", "b001"]


def test_cut_manifest_with_audio_files(tmp_path: Path) -> None:
    cuts = []
    for made in dialogues("d", 4):
        agent_path = tmp_path / f"{made.id}-agent.wav"
        agent_path.write_bytes(made.target_audio.sources[0].source)
        cut = made.save_audio(tmp_path / f"{made.id}.wav")
        cut.target_audio = Recording.from_file(agent_path)
        cuts.append(cut)
    path = tmp_path / "cuts.jsonl.gz"
    CutSet(cuts).to_file(path)
    assert train(cuts_path=str(path))[:5] == ["d000", "d001", "d002", "d003", "d000"]
    assert set(train(input_cfg=[{"type": "lhotse", "cuts_path": str(path)}])) == {cut.id for cut in cuts}


def test_tags_reach_the_cuts_of_groups(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 2))
    inner = shar_entry(shar, tags={"lang": "en"})
    cuts = list(read_blend([{"type": "group", "tags": {"task": "qa", "lang": "xx"}, "input_cfg": [inner]}]))
    assert [(cut.task, cut.lang) for cut in cuts] == [("qa", "en")] * 2


def test_blend_can_be_read_twice(tmp_path: Path) -> None:
    cuts = read_blend([shar_entry(write_shar(tmp_path / "shar", dialogues("d", 7), shard_size=2))])
    assert [cut.id for cut in cuts] == [cut.id for cut in cuts] == [f"d{i:03d}" for i in range(7)]


def test_stored_codes_are_read_without_the_audio_file(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4, codes=True), codes=True)
    for tar in Path(shar).glob("target_audio.*"):
        tar.write_bytes(b"not a tar file")
    assert "target_codes" in next(iter(train_dataloader(config({"shar_path": shar}), TOKENIZER)))
    with pytest.raises(DataError, match="unreadable Shar shard"):
        next(iter(train_dataloader(config({"shar_path": shar, "load_target_audio": True}), TOKENIZER)))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"shar_path": "x"}, r"input_cfg\[0\] must be a mapping with a type, one of group, lhotse, lhotse_shar"),
        (
            {"type": "lhotse_shr", "shar_path": "x"},
            r"input_cfg\[0\].type: unknown 'lhotse_shr': did you mean 'lhotse_shar'",
        ),
        ({"type": "lhotse_shar", "shar_pth": "x"}, r"input_cfg\[0\]: unknown 'shar_pth': did you mean 'shar_path'"),
        ({"type": "lhotse_shar"}, r"input_cfg\[0\]: an entry of type lhotse_shar needs shar_path"),
        ({"type": "group", "input_cfg": []}, r"input_cfg\[0\].input_cfg must be a list of entries"),
        ({"type": "lhotse", "cuts_path": "/no/cuts.jsonl"}, r"can't read the cut manifest /no/cuts.jsonl"),
        (
            {"type": "lhotse_shar", "shar_path": "/no/folder"},
            r"the Shar folder /no/folder doesn't exist: check the path",
        ),
        ({"type": "lhotse_shar", "shar_path": "/no/*"}, r"nothing matches /no/\*"),
    ],
)
def test_wrong_entry_says_where_and_what(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(input_cfg=[entry])


@pytest.mark.parametrize("weight", [0, -1, None])
def test_weights_are_all_or_none_and_above_zero(tmp_path: Path, weight: float | None) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 2))
    with pytest.raises(DataError, match=r"input_cfg\[1\](.weight is| has no weight)"):
        train(input_cfg=[shar_entry(shar, weight=1), shar_entry(shar, weight=weight)])


def test_no_data_and_two_kinds_of_data_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.train_ds needs one of input_cfg, shar_path and cuts_path, but has none"):
        train()
    with pytest.raises(DataError, match="has input_cfg and shar_path"):
        train(input_cfg=[], shar_path="x")
    with pytest.raises(DataError, match="no blend file at"):
        train(input_cfg=str(tmp_path / "blend.yaml"))


def test_folder_that_is_no_shar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"data.train_ds.shar_path: no cuts.*in {tmp_path}"):
        train(shar_path=str(tmp_path))


def test_shar_with_a_missing_file(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4), shard_size=2)
    (tmp_path / "shar" / "target_audio.000001.tar").unlink()
    with pytest.raises(DataError, match=r"different numbers of shards, .*'target_audio': 1"):
        train(shar_path=shar)


def test_shar_without_the_agent(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 2, audio=False), audio=False)
    with pytest.raises(DataError, match=r"neither target_audio nor target_codes: the agent's audio is missing"):
        train(shar_path=shar)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("broken", ["cuts.000000.jsonl.gz", "recording.000000.tar", "target_audio.000000.tar"])
def test_broken_file_ends_in_one_line_that_names_the_shard(tmp_path: Path, num_workers: int, broken: str) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4))
    file = tmp_path / "shar" / broken
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError) as error:
        train(shar_path=shar, num_workers=num_workers)
    assert str(error.value).startswith(f"unreadable Shar shard {shar}/cuts.000000.jsonl.gz: ")
    assert "\n" not in str(error.value)


def test_cut_without_target_audio_ends_training_in_one_line(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", [dialogue("fine"), dialogue("mute", audio=False)])
    for num_workers in (0, 1):
        with pytest.raises(DataError) as error:
            train(shar_path=shar, num_workers=num_workers)
        assert str(error.value).startswith("cut mute of ")
        assert "\n" not in str(error.value)


def test_defect_17_role_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", [dialogue("d", turns=[("user", 0, 0.8, "hi"), ("assistant", 0.8, 0.8, "ho")])])
    message = (
        r"data.output_roles=\['Assistant', 'agent'\] matches no supervision of data.train_ds; .*'assistant' \(1 turns\)"
    )
    with pytest.raises(DataError, match=message):
        train_dataloader(config({"shar_path": shar}, output_roles=["agent", "Assistant"]), TOKENIZER)
    with pytest.raises(DataError, match=r"data.input_roles=\['caller'\] .* data.validation_ds.datasets.heldout"):
        validation_dataloaders(
            config(sets={"heldout": {"shar_path": shar}}, input_roles=["caller"], output_roles=["assistant"]), TOKENIZER
        )


def test_role_may_be_rare(tmp_path: Path) -> None:
    silent = [dialogue(f"s{i}", turns=[("user", 0, 0.8, "hi")]) for i in range(6)]
    shar = write_shar(tmp_path / "shar", [*silent, dialogue("spoken")], shard_size=3)
    assert "spoken" in train(shar_path=shar)


def test_manifest_that_isnt_lhotses(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 2))
    with gzip.open(tmp_path / "shar" / "cuts.000000.jsonl.gz", "wt") as file:
        file.write('{"audio": "a.wav"}\n')
    with pytest.raises(DataError, match=r"unreadable Shar shard .*cuts.000000.jsonl.gz"):
        train(shar_path=shar)
