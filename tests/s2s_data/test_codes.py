"""Encoding Shars and blends: `encode_shar`, `encode_blend` and `s2s-data encode`."""

import gzip
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from omegaconf import OmegaConf
from torch import Tensor

from s2s_data import DataError, encode_shar, read_blend, train_dataloader, validation_dataloaders
from s2s_data.array_rank import rank_and_world_size
from s2s_data.cli import main
from s2s_data.coded_blend import encode_blend
from s2s_data.codes import EncodeOptions, Reporter
from s2s_data.shar import find_shards
from tests.s2s_data.builders import WordTokenizer, config, dialogue, dialogues, write_shar

TOKENIZER = WordTokenizer()


class LoudnessCodec:
    """Two codes a frame: how loud its first and its second half are."""

    sample_rate = 22050
    frame_rate = 12.5

    def __init__(self, fingerprint: str = "loudness-1") -> None:
        self.fingerprint = fingerprint
        self.shapes: list[tuple[int, ...]] = []

    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        self.shapes.append(tuple(audio_BS.shape))
        halves = audio_BS[:, : audio_BS.shape[1] // 1764 * 1764].unflatten(1, (-1, 2, 882))
        return (halves.abs().mean(-1) * 1e6).long(), lens_B // 1764


class StoppedCodec(LoudnessCodec):
    """Is stopped at its third batch."""

    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.shapes) == 2:
            raise KeyboardInterrupt
        return super().encode(audio_BS, lens_B)


def make_loudness_codec(name: str = "loudness-1", version: int = 1) -> LoudnessCodec:
    return LoudnessCodec(f"{name}.{version}")


THIS = "tests.s2s_data.test_codes"
FACTORY = f"{THIS}:make_loudness_codec"


def cuts_of(folder: Path | str) -> list[Any]:
    return list(CutSet.from_shar(in_dir=str(folder)))


def test_encoded_shar_trains_without_audio(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 7), shard_size=3)
    codec = LoudnessCodec()
    summary = encode_shar(raw, tmp_path / "coded", codec, EncodeOptions(batch_size=2))
    assert (summary.num_dialogues, summary.num_shards, summary.num_shards_kept) == (7, 3, 0)
    assert summary.audio_s == pytest.approx(sum(cut.duration for cut in cuts_of(raw)))
    sets = {"v": {"shar_path": str(tmp_path / "coded"), "batch_size": 7}}
    (batch,) = validation_dataloaders(config(sets=sets), TOKENIZER, codec_fingerprint="loudness-1")["v"]
    codes, lens = codec.encode(batch["target_audio"], batch["target_audio_lens"])
    assert torch.equal(batch["target_code_lens"], lens)
    for made, stored, length in zip(codes, batch["target_codes"], lens, strict=True):
        assert torch.equal(made[:length], stored[:length])
    train = config({"shar_path": str(tmp_path / "coded")})
    assert "target_audio" not in next(iter(train_dataloader(train, TOKENIZER, codec_fingerprint="loudness-1")))
    with pytest.raises(DataError, match=r"loudness-1, but the model's codec is loudness-2: .* s2s-data encode "):
        next(iter(train_dataloader(train, TOKENIZER, codec_fingerprint="loudness-2")))


@pytest.mark.parametrize("out", ["raw", "coded"])
def test_manifest_tells_of_the_codes(tmp_path: Path, out: str) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 5), shard_size=3)
    encode_shar(raw, tmp_path / out, LoudnessCodec())
    shards = find_shards(str(tmp_path / out), "here")
    planned = [cut for shard in shards for cut in shard.cuts(metadata_only=True)]
    assert all(cut.has_custom("target_codes") for cut in planned)
    stored = [cut.load_target_codes().shape for cut in cuts_of(tmp_path / out)]
    assert [tuple(cut.target_codes.shape) for cut in planned] == stored
    assert all(cut.target_codes.array.storage_type == "shar" for cut in planned)


def test_encoding_in_place_keeps_the_rest(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 4), shard_size=2)
    before = cuts_of(raw)
    encode_shar(raw, raw, LoudnessCodec())
    after = cuts_of(raw)
    assert [cut.id for cut in before] == [cut.id for cut in after]
    for old, new in zip(before, after, strict=True):
        assert new.load_target_codes().shape == (round(new.duration / 0.08), 2)
        assert (old.load_audio() == new.load_audio()).all()
        assert old.supervisions == new.supervisions
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("out", ["raw", "coded"])
def test_stopped_encoding_goes_on(tmp_path: Path, out: str) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 6), shard_size=2)
    options = EncodeOptions(batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        encode_shar(raw, tmp_path / out, StoppedCodec(), options)
    assert len(list((tmp_path / out).glob("target_codes.*"))) == 1, "half a shard is seen"
    said = list[str]()
    codec = LoudnessCodec()
    summary = encode_shar(raw, tmp_path / out, codec, options, Reporter(say=said.append))
    assert (summary.num_dialogues, summary.num_shards_kept, len(codec.shapes), len(said)) == (4, 1, 4, 2)
    assert [cut.load_target_codes().shape[1] for cut in cuts_of(tmp_path / out)] == [2] * 6
    assert "1 were encoded before" in summary.lines()[0]


def test_codes_of_another_codec_are_replaced_only_if_asked(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 3), shard_size=2)
    encode_shar(raw, tmp_path / "coded", LoudnessCodec())
    codec = LoudnessCodec("loudness-2")
    with pytest.raises(DataError, match=r"holds codes of the codec loudness-1, but .* of loudness-2: .*--overwrite"):
        encode_shar(raw, tmp_path / "coded", codec)
    assert not codec.shapes
    encode_shar(raw, tmp_path / "coded", codec, EncodeOptions(overwrite=True))
    cuts = read_blend([{"type": "lhotse_shar", "shar_path": str(tmp_path / "coded")}])
    assert {cut.codec_fingerprint for cut in cuts} == {"loudness-2"}


def test_codes_that_nobody_signed_are_another_codecs(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 2, codes=True), codes=True)
    with pytest.raises(DataError, match="holds codes of a codec that isn't named"):
        encode_shar(raw, raw, LoudnessCodec())
    encode_shar(raw, tmp_path / "coded", LoudnessCodec())
    assert [cut.load_target_codes().shape[1] for cut in cuts_of(tmp_path / "coded")] == [2, 2]


def test_ranks_share_the_shards(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 10), shard_size=2)
    counts = [
        encode_shar(raw, tmp_path / "coded", LoudnessCodec(), EncodeOptions(rank=rank, world_size=3)).num_dialogues
        for rank in (2, 0, 1)
    ]
    assert counts == [2, 4, 4]
    whole = encode_shar(raw, tmp_path / "whole", LoudnessCodec())
    assert whole.num_dialogues == 10
    for mine, theirs in zip(cuts_of(tmp_path / "coded"), cuts_of(tmp_path / "whole"), strict=True):
        assert mine.id == theirs.id
        assert (mine.load_target_codes() == theirs.load_target_codes()).all()


def test_batches_hold_no_more_than_their_duration(tmp_path: Path) -> None:
    cuts = [dialogue(f"d{i}", duration_s) for i, duration_s in enumerate([1.6, 1.6, 1.6, 3.2, 8.0, 1.6])]
    raw = write_shar(tmp_path / "raw", cuts, shard_size=6)
    codec = LoudnessCodec()
    encode_shar(raw, tmp_path / "coded", codec, EncodeOptions(batch_duration_s=5.0))
    assert codec.shapes == [(3, 35280), (1, 70560), (1, 176400), (1, 35280)]


def test_unreadable_audio_stops_or_is_left_without_codes(tmp_path: Path) -> None:
    bad = dialogue("bad")
    bad.target_audio.sources[0].source = b"no audio"
    good = dialogue("good")
    raw = tmp_path / "raw"
    write_shar(raw, [dialogue("first"), dialogue("middle"), good])
    tar = raw / "target_audio.000000.tar"
    data = tar.read_bytes()
    at = data.index(b"RIFF", data.index(b"middle"))
    tar.write_bytes(data[:at] + b"JUNK" + data[at + 4 :])
    with pytest.raises(DataError, match=r"cut middle of .*: can't read its target_audio"):
        encode_shar(raw, tmp_path / "coded", LoudnessCodec())
    said: list[str] = []
    options = EncodeOptions(on_error="skip")
    summary = encode_shar(raw, tmp_path / "coded", LoudnessCodec(), options, Reporter(say=said.append))
    assert len([line for line in said if "cut middle" in line]) == 1
    assert (summary.num_dialogues, len(summary.unreadable)) == (2, 1)
    assert [cut.has_custom("target_codes") for cut in cuts_of(tmp_path / "coded")] == [True, False, True]
    (shard,) = find_shards(str(tmp_path / "coded"), "here")
    assert [cut.has_custom("target_codes") for cut in shard.cuts(metadata_only=True)] == [True, False, True]


def test_unreadable_audio_loses_the_codes_of_another_codec(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_shar(raw, [dialogue("good"), dialogue("middle")])
    encode_shar(raw, raw, LoudnessCodec())
    tar = raw / "target_audio.000000.tar"
    data = tar.read_bytes()
    at = data.index(b"RIFF", data.index(b"middle"))
    tar.write_bytes(data[:at] + b"JUNK" + data[at + 4 :])
    encode_shar(raw, raw, LoudnessCodec("loudness-2"), EncodeOptions(overwrite=True, on_error="skip"))
    assert [cut.has_custom("target_codes") for cut in cuts_of(raw)] == [True, False]


def test_empty_manifest_is_an_error(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_shar(raw, [dialogue("a")])
    encode_shar(raw, raw, LoudnessCodec())
    (raw / "cuts.000000.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match="has no dialogue to encode: take the shard out"):
        encode_shar(raw, raw, LoudnessCodec())


def test_nothing_to_encode_names_the_cut(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", [dialogue("fine"), dialogue("mute", audio=False)])
    with pytest.raises(DataError, match=r"cut mute of .* has no target_audio to encode"):
        encode_shar(raw, tmp_path / "coded", LoudnessCodec())
    with pytest.raises(DataError, match="doesn't exist"):
        encode_shar(tmp_path / "none", tmp_path / "coded", LoudnessCodec())


def blend_file(tmp_path: Path) -> Path:
    """A blend with a nested file, a pattern, a list with weights, a mapping, and an entry whose roles are swapped."""
    a, b, c, d = (write_shar(tmp_path / name, dialogues(name, 2), shard_size=1) for name in ("a", "b1", "b2", "c"))
    del b, c
    (tmp_path / "inner.yaml").write_text(f"- {{type: lhotse_shar, shar_path: '{tmp_path}/b[12]', weight: 0.25}}\n")
    fields = {name: f"{d}/{name}.{{000000..000001}}" for name in ("cuts", "recording", "target_audio")}
    fields = {name: path + (".jsonl.gz" if name == "cuts" else ".tar") for name, path in fields.items()}
    entries = [
        {"type": "lhotse_shar", "shar_path": [[a, 3.0], [d, 1.0]], "weight": 0.5, "tags": {"task": "chat"}},
        {"type": "group", "weight": 0.3, "input_cfg": str(tmp_path / "inner.yaml")},
        {"type": "lhotse_shar", "shar_path": fields, "weight": 0.1},
        {"type": "s2s_duplex_reverse_role", "shar_path": a, "weight": 0.1},
    ]
    path = tmp_path / "blend.yaml"
    OmegaConf.save(OmegaConf.create(entries), path)
    return path


def test_blend_is_encoded_and_rewritten(tmp_path: Path) -> None:
    path, out = blend_file(tmp_path), tmp_path / "coded"
    codec = LoudnessCodec()
    summary = encode_blend(path, out, codec)
    assert (summary.num_dialogues, summary.num_shards) == (10, 10)
    assert sorted(item.name for item in out.iterdir()) == ["000-a", "001-c", "002-b1", "003-b2", "004-c", "blend.yaml"]
    old, new = list(read_blend(str(path))), list(read_blend(str(out / "blend.yaml")))
    assert [cut.id for cut in new] == [cut.id for cut in old]
    assert [cut.has_custom("target_codes") for cut in new] == [True] * 10 + [False] * 2
    assert new[0].task == "chat"
    entries: Any = OmegaConf.to_container(OmegaConf.load(out / "blend.yaml"))
    first, group, *_ = entries
    assert first["shar_path"] == [[str(out / "000-a"), 3.0], [str(out / "001-c"), 1.0]]
    assert group["input_cfg"][0]["weight"] == 0.25
    assert encode_blend(path, out, codec).num_shards_kept == 10


def test_blend_of_a_manifest_says_what_to_do(tmp_path: Path) -> None:
    cut = dialogue("m")
    cut.target_audio = cut.recording = cut.recording.move_to_memory().to_cut().save_audio(tmp_path / "m.wav").recording
    CutSet([cut]).to_file(tmp_path / "cuts.jsonl")
    path = tmp_path / "blend.yaml"
    path.write_text(f"- {{type: lhotse, cuts_path: {tmp_path}/cuts.jsonl}}\n")
    with pytest.raises(DataError, match=r"blend.yaml\[0\]: codes are stored in a Shar, but this entry is the manifest"):
        encode_blend(path, tmp_path / "coded", LoudnessCodec())


def test_command_encodes_a_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 6), shard_size=2)
    out = str(tmp_path / "coded")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    args = ["encode", raw, out, "--codec", FACTORY, "--codec-args", "name=loud", "version=3"]
    assert main(args) == 0
    assert "codec loud.3, rank 1 of 2\nencoded 2 dialogues" in capsys.readouterr().out
    assert main([*args, "--rank", "0", "--world-size", "2"]) == 0
    assert "encoded 4 dialogues" in capsys.readouterr().out
    assert {cut.codec_fingerprint for cut in cuts_of(out)} == {"loud.3"}
    assert main([*args, "--rank", "0"]) == 2
    assert "give both" in capsys.readouterr().err


def test_command_encodes_a_blend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "coded"
    assert main(["encode", str(blend_file(tmp_path)), str(out), "--codec", FACTORY]) == 0
    assert f"the blend of them: {out}{os.sep}blend.yaml" in capsys.readouterr().out
    assert read_blend(str(out / "blend.yaml")) is not None


@pytest.mark.parametrize(
    ("factory", "args", "message"),
    [
        ("json", [], "--codec is 'json', but must be module:function"),
        ("no_such_module:f", [], "No module named 'no_such_module': install it, or put its folder on PYTHONPATH"),
        (f"{THIS}:nothing", [], f"{THIS} has no function nothing"),
        (f"{THIS}:dialogue", ["cut_id=x"], "it returned a MonoCut without sample_rate, frame_rate, fingerprint"),
        (FACTORY, ["nam=x"], "got an unexpected keyword argument 'nam': it takes (name: str"),
        (FACTORY, ["version"], "--codec-args: 'version' must be key=value"),
    ],
)
def test_codecs_that_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factory: str, args: list[str], message: str
) -> None:
    command = ["encode", str(tmp_path), str(tmp_path / "out"), "--codec", factory]
    assert main([*command, *(["--codec-args", *args] if args else [])]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "RANK": "1", "WORLD_SIZE": "2"}, (0, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "10",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "2",
                "SLURM_ARRAY_TASK_MAX": "10",
                "SLURM_ARRAY_TASK_STEP": "4",
            },
            (2, 3),
        ),
    ],
)
def test_rank_comes_from_the_environment(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert rank_and_world_size(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "only one is set"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'"),
        (
            # --array=1,5,7 repeats three tasks of a larger array
            {
                "SLURM_ARRAY_TASK_ID": "5",
                "SLURM_ARRAY_TASK_COUNT": "3",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_MAX": "7",
            },
            "3 tasks from 1 to 7 aren't numbered evenly",
        ),
    ],
)
def test_rank_that_cannot_be_told(environ: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rank_and_world_size(environ)
    with pytest.raises(DataError, match="rank is 2"):
        EncodeOptions(rank=2, world_size=2)
