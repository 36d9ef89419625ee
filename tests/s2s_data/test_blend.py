"""Finding and mixing data, and what is said where there is none."""

import functools
import gzip
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, Recording
from lhotse.cut import Cut
from omegaconf import OmegaConf

from s2s_data import DataError, read_blend, train_dataloader, validation_dataloaders
from s2s_data.blend import Blend, parse_blend
from tests.s2s_data.builders import WordTokenizer, config, dialogue, dialogues, write_shar

TOKENIZER = WordTokenizer()


def train(**train_ds: Any) -> list[str]:
    batches = iter(train_dataloader(config({"shuffle": False, "batch_size": 1, **train_ds}), TOKENIZER))
    try:
        return [cut_id for batch in islice(batches, 12) for cut_id in batch["cut_ids"]]
    finally:
        batches.close()  # type: ignore[attr-defined]


def shar_entry(path: Any, **more: Any) -> dict[str, Any]:
    return {"type": "lhotse_shar", "shar_path": path, **more}


@pytest.fixture(scope="module")
def shar(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Shar of 4 dialogues in 2 shards."""
    return write_shar(tmp_path_factory.mktemp("blend") / "shar", dialogues("d", 4), shard_size=2)


def weights_of(blend: Blend) -> list[float]:
    return [leaf.weight for leaf in blend.leaves]


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
    with pytest.raises(DataError, match=r"can't read .*/target_audio.000000.tar"):
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
        (
            {"type": "lhotse_shar"},
            r"input_cfg\[0\]: an entry of type lhotse_shar needs one of shar_path and cuts_path, but has none",
        ),
        (
            {"type": "lhotse", "shar_path": "x", "cuts_path": "y"},
            r"input_cfg\[0\]: an entry of type lhotse needs one of .* but has shar_path and cuts_path",
        ),
        ({"type": "group"}, r"input_cfg\[0\]: an entry of type group needs input_cfg, but has none"),
        ({"type": "lhotse", "cuts_path": "x", "tags": "en"}, r"input_cfg\[0\].tags is 'en', but must be a mapping"),
        (
            {"type": "lhotse", "cuts_path": "x", "max_open_streams": 0},
            r"input_cfg\[0\].max_open_streams is 0, but must be a whole number above 0",
        ),
        (
            {"type": "s2s_duplex_reverse_role", "shar_path": "x", "agent_role": ["a"]},
            r"input_cfg\[0\]: unknown 'agent_role': did you mean 'agent_roles'",
        ),
        (
            {"type": "s2s_duplex_reverse_role", "shar_path": "x", "agent_roles": "agent"},
            r"input_cfg\[0\]: agent_roles is 'agent', but must be a list of speaker names",
        ),
        (
            {"type": "lhotse_shar", "shar_path": "s3://bucket/shar"},
            r"the files of s3://bucket/shar can't be listed: name them, as in {cuts: \"s3://bucket/shar/cuts",
        ),
        (
            {"type": "lhotse_shar", "shar_path": {"cuts": "s3://bucket/cuts.*.jsonl.gz"}},
            r"what matches s3://bucket/cuts.\*.jsonl.gz can't be listed: name the files",
        ),
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
    with pytest.raises(DataError, match=message) as error:
        parse_blend("data.train_ds", input_cfg=[entry])
    assert str(error.value).startswith("data.train_ds.input_cfg[0]")


@pytest.mark.parametrize("weight", [0, -1, float("nan"), "much", True, None])
def test_weights_are_all_or_none_and_above_zero(shar: str, weight: Any) -> None:
    with pytest.raises(DataError, match=r"input_cfg\[1\](.weight is| has no weight)"):
        parse_blend("data.train_ds", input_cfg=[shar_entry(shar, weight=1), shar_entry(shar, weight=weight)])


# A tree of weights: a leaf is a weight, a group its weight and what is in it.
Tree = tuple[float, "list[Tree] | None"]
WEIGHTS = st.floats(1e-3, 1e3)
TREES: st.SearchStrategy[list[Tree]] = st.lists(
    st.recursive(
        st.tuples(WEIGHTS, st.none()), lambda inner: st.tuples(WEIGHTS, st.lists(inner, min_size=1, max_size=3))
    ),
    min_size=1,
    max_size=3,
)


def entries_of(trees: list[Tree], shar: str) -> list[dict[str, Any]]:
    return [
        shar_entry(shar, weight=weight)
        if inner is None
        else {"type": "group", "weight": weight, "input_cfg": entries_of(inner, shar)}
        for weight, inner in trees
    ]


def depth_of(trees: list[Tree]) -> int:
    return 1 + max(0 if inner is None else depth_of(inner) for _, inner in trees)


def draws_of(trees: list[Tree], temperatures: list[float]) -> list[float]:
    """The chance of each leaf where each level is drawn by itself, as NeMo does it."""
    temperature, *below = temperatures
    total = sum(weight**temperature for weight, _ in trees)
    chances = []
    for weight, inner in trees:
        chance = weight**temperature / total
        chances += [chance] if inner is None else [chance * within for within in draws_of(inner, below)]
    return chances


@given(trees=TREES, data=st.data())
def test_leaves_are_drawn_as_level_by_level(shar: str, trees: list[Tree], data: st.DataObject) -> None:
    entries, depth = entries_of(trees, shar), depth_of(trees)
    temperatures = data.draw(st.lists(st.floats(0, 2), min_size=depth, max_size=depth))
    plain = weights_of(parse_blend("d", input_cfg=entries))
    assert sum(plain) == pytest.approx(1)
    assert plain == pytest.approx(draws_of(trees, [1.0] * depth))
    assert weights_of(parse_blend("d", input_cfg=entries, reweight_temperature=1)) == plain
    reweighted = weights_of(parse_blend("d", input_cfg=entries, reweight_temperature=temperatures))
    assert sum(reweighted) == pytest.approx(1)
    assert reweighted == pytest.approx(draws_of(trees, temperatures))


def test_draws_turns_and_audio_are_nemos(tmp_path: Path) -> None:
    """NeMo reads the same blend: it draws the leaves as often, and converts cuts to the same dialogues."""
    from nemo.collections.common.data.lhotse.cutset import read_cutset_from_config

    overlap = dialogues("o", 3)
    for cut in overlap:
        cut.agent_segments = [{"start": 0.9, "end": 1.4, "text": "yes"}]
        cut.user_segments = [{"start": 0.1, "end": 0.8, "text": "well"}]
    shars = {name: write_shar(tmp_path / name, dialogues(name, 3)) for name in "abc"}
    shars["o"] = write_shar(tmp_path / "o", overlap)
    reverse = {"type": "s2s_duplex_reverse_role", "input_cfg": [shar_entry(shars["c"])]}
    overlap_entry = {"type": "s2s_duplex_overlap_as_s2s_duplex", "shar_path": shars["o"]}
    group = [
        shar_entry(shars["b"], weight=1, tags={"leaf": 1}),
        {**reverse, "weight": 9, "tags": {"leaf": 2}},
        {**overlap_entry, "move_agent_text_back_by": 0.2, "weight": 6, "tags": {"leaf": 3}},
    ]
    entries = [
        shar_entry(shars["a"], weight=1, tags={"leaf": 0}),
        {"type": "group", "weight": 4, "input_cfg": group},
    ]
    blend = parse_blend("d", input_cfg=entries, reweight_temperature=[0.5, 0.7, 1])
    nemo_config = OmegaConf.create({"input_cfg": entries, "reweight_temperature": [0.5, 0.7, 1], "shard_seed": 0})
    draws = list(islice(read_cutset_from_config(nemo_config)[0], 3000))
    counts = Counter(cut.leaf for cut in draws)
    assert [counts[leaf] / len(draws) for leaf in range(4)] == pytest.approx(weights_of(blend), abs=0.03)
    theirs = {cut.id: cut for cut in draws}
    ours = {cut.id: cut for cut in blend.once(with_target_audio=True)}
    assert ours.keys() == theirs.keys()
    for cut_id, cut in ours.items():
        assert (cut.leaf, cut.duration) == (theirs[cut_id].leaf, theirs[cut_id].duration)
        assert turns_of(cut) == turns_of(theirs[cut_id])
        np.testing.assert_array_equal(cut.load_audio(), theirs[cut_id].load_audio())
        np.testing.assert_array_equal(cut.load_target_audio(), theirs[cut_id].target_audio.load_audio())


def turns_of(cut: Cut) -> list[tuple[str | None, float, float, str | None]]:
    return [(turn.speaker, round(turn.start, 6), round(turn.duration, 6), turn.text) for turn in cut.supervisions]


@given(weights=st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5))
def test_temperature_zero_is_even(shar: str, weights: list[float]) -> None:
    blend = parse_blend("d", input_cfg=[shar_entry(shar, weight=weight) for weight in weights], reweight_temperature=0)
    assert weights_of(blend) == pytest.approx([1 / len(weights)] * len(weights))


def test_entries_without_weights_are_drawn_evenly_at_their_level(shar: str) -> None:
    group = {"type": "group", "input_cfg": [shar_entry(shar), shar_entry(shar)]}
    assert weights_of(parse_blend("d", input_cfg=[shar_entry(shar), group])) == [0.5, 0.25, 0.25]


def test_group_may_have_temperatures_of_its_own(shar: str) -> None:
    inner = [shar_entry(shar, weight=1), shar_entry(shar, weight=9)]
    group = {"type": "group", "weight": 3, "reweight_temperature": 0.5, "input_cfg": inner}
    blend = parse_blend("d", input_cfg=[shar_entry(shar, weight=1), group], reweight_temperature=[0, 1])
    assert weights_of(blend) == pytest.approx([0.5, 0.125, 0.375])


@pytest.mark.parametrize(
    ("temperature", "message"),
    [
        ([0.5], r"d.reweight_temperature has 1 values, but input_cfg 2 levels: give one a level"),
        (-1, r"d.reweight_temperature is -1, but must be a number or a list of them, 0 or more"),
    ],
)
def test_wrong_temperature(shar: str, temperature: Any, message: str) -> None:
    group = {"type": "group", "input_cfg": [shar_entry(shar)]}
    with pytest.raises(DataError, match=message):
        parse_blend("d", input_cfg=[group], reweight_temperature=temperature)


def test_folders_in_one_list_weigh_as_many_cuts_as_they_have(tmp_path: Path, shar: str) -> None:
    small = write_shar(tmp_path / "small", dialogues("s", 1))
    assert weights_of(parse_blend("d", shar_path=[shar, small])) == [0.8, 0.2]
    assert weights_of(parse_blend("d", shar_path=[[shar, 1], [small, 3]])) == [0.25, 0.75]


def test_no_manifest_is_read_where_weights_are_given(tmp_path: Path, shar: str) -> None:
    broken = Path(shutil.copytree(shar, tmp_path / "broken"))
    for manifest in broken.glob("cuts.*"):
        manifest.write_bytes(b"not gzip")
    entries = [shar_entry(str(broken), weight=1), shar_entry([[shar, 1], [str(broken), 2]], weight=1)]
    assert len(parse_blend("d", input_cfg=entries).leaves) == 3
    with pytest.raises(DataError, match=rf"unreadable Shar shard {broken}/cuts"):
        parse_blend("d", shar_path=[shar, str(broken)])


def test_blend_files_hold_blend_files(tmp_path: Path, shar: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLEND_TEST_SHAR", shar)
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text("- {type: lhotse_shar, shar_path: '${oc.env:BLEND_TEST_SHAR}', tags: {lang: en}}")
    outer.write_text(f"- {{type: group, input_cfg: {inner}}}")
    assert {cut.lang for cut in read_blend(str(outer))} == {"en"}
    inner.write_text("- {type: lhotse_shar, shar_path: x, weigth: 2}")
    with pytest.raises(DataError, match=rf"{inner}\[0\]: unknown 'weigth': did you mean 'weight'"):
        read_blend(str(outer))
    inner.write_text("- {type: lhotse_shar, shar_path: '${oc.env:BLEND_TEST_NOT_SET}'}")
    with pytest.raises(DataError, match=rf"{inner}: .*BLEND_TEST_NOT_SET"):
        read_blend(str(outer))
    inner.write_text(f"- {{type: group, input_cfg: {outer}}}")
    with pytest.raises(DataError, match=rf"the blend file {outer} includes itself"):
        read_blend(str(outer))
    outer.write_text("- {type: [")
    with pytest.raises(DataError, match=rf"can't read the blend file {outer}") as error:
        read_blend(str(outer))
    assert "\n" not in str(error.value)


def test_smallest_max_open_streams_holds(shar: str) -> None:
    entries = [shar_entry(shar), {"type": "group", "max_open_streams": 3, "input_cfg": [shar_entry(shar)]}]
    assert parse_blend("d", input_cfg=entries, max_open_streams=5).max_open_streams == 3
    assert parse_blend("d", input_cfg=entries, max_open_streams=2).max_open_streams == 2
    assert parse_blend("d", shar_path=shar).max_open_streams is None


def test_nemos_keys_without_effect_are_taken_and_named(shar: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        parse_blend("data.train_ds", input_cfg=[shar_entry(shar, slice_length=100, shuffle=True)])
    assert [record.getMessage() for record in caplog.records] == [
        "data.train_ds: shuffle, slice_length in its entries have no effect here, see docs/blends.md"
    ]


def test_manifest_in_parts_with_paths_from_its_folder(tmp_path: Path) -> None:
    for number, made in enumerate(dialogues("d", 3)):
        for field, recording in (("recording", made.recording), ("target_audio", made.target_audio)):
            name = f"{made.id}-{field}.wav"
            (tmp_path / name).write_bytes(recording.sources[0].source)
            on_disk = Recording.from_file(tmp_path / name)
            on_disk.sources[0].source = name
            setattr(made, field, on_disk)
        CutSet([made]).to_file(tmp_path / f"cuts.{number}.jsonl.gz")
    blend = parse_blend("d", cuts_path=f"{tmp_path}/cuts.{{0..2}}.jsonl.gz")
    assert weights_of(blend) == pytest.approx([1 / 3] * 3)
    assert weights_of(parse_blend("d", cuts_path=f"{tmp_path}/cuts.*")) == weights_of(blend)
    for cut in blend.once(with_target_audio=True):
        assert cut.load_audio().shape[1] == cut.num_samples
        assert cut.load_target_audio().shape[1] == cut.target_audio.num_samples


@pytest.fixture
def server(shar: str) -> Iterator[str]:
    """The URL of a server of the folder that the Shar is in."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=Path(shar).parent)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_shar_through_http_and_pipes(shar: str, server: str, tmp_path: Path) -> None:
    through_http = {
        "cuts": f"{server}/shar/cuts.{{000000..000001}}.jsonl.gz",
        "recording": f"{server}/shar/recording._OP_000000..000001_CL_.tar",
        "target_audio": [f"{server}/shar/target_audio.00000{number}.tar" for number in range(2)],
    }
    through_pipes = {
        "cuts": f"pipe:gunzip -c {shar}/cuts.{{000000..000001}}.jsonl.gz",
        "recording": f"pipe:cat {shar}/recording.{{000000..000001}}.tar",
        "target_audio": f"pipe:cat {shar}/target_audio.{{000000..000001}}.tar",
    }
    expected = list(read_blend([shar_entry(shar)]))
    for files in (through_http, through_pipes):
        found = list(read_blend([shar_entry(files)]))
        assert [cut.id for cut in found] == [cut.id for cut in expected]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.load_audio(), other.load_audio())
            np.testing.assert_array_equal(one.load_target_audio(), other.load_target_audio())


def test_blend_file_and_manifest_through_http(shar: str, server: str) -> None:
    blend = Path(shar).with_name("blend.yaml")
    blend.write_text(f"- {{type: lhotse, cuts_path: {server}/shar/cuts.000000.jsonl.gz}}")
    assert [cut.id for cut in parse_blend("d", input_cfg=f"{server}/blend.yaml").metadata()] == ["d000", "d001"]


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
def test_broken_file_ends_in_one_line_that_names_it(tmp_path: Path, num_workers: int, broken: str) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4))
    file = tmp_path / "shar" / broken
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(DataError) as error:
        train(shar_path=shar, num_workers=num_workers)
    assert str(file) in str(error.value)
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
