"""Encoding a Shar."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from s2s_data import DataError, encode_shar, read_blend, train_dataloader, validation_dataloaders
from tests.s2s_data.builders import WordTokenizer, config, dialogue, dialogues, write_shar

TOKENIZER = WordTokenizer()


class LoudnessCodec:
    """Two codes a frame: how loud its first and its second half are."""

    sample_rate = 22050
    frame_rate = 12.5

    def __init__(self, fingerprint: str = "loudness-1") -> None:
        self.fingerprint = fingerprint
        self.num_calls = 0

    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        self.num_calls += 1
        halves = audio_BS[:, : audio_BS.shape[1] // 1764 * 1764].unflatten(1, (-1, 2, 882))
        return (halves.abs().mean(-1) * 1e6).long(), lens_B // 1764


def test_encoded_shar_trains_without_audio(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 7), shard_size=3)
    codec = LoudnessCodec()
    assert encode_shar(raw, tmp_path / "coded", codec, batch_size=2) == 7
    sets = {"v": {"shar_path": str(tmp_path / "coded"), "batch_size": 7}}
    (batch,) = validation_dataloaders(config(sets=sets), TOKENIZER, codec_fingerprint="loudness-1")["v"]
    codes, lens = codec.encode(batch["target_audio"], batch["target_audio_lens"])
    assert torch.equal(batch["target_code_lens"], lens)
    for made, stored, length in zip(codes, batch["target_codes"], lens, strict=True):
        assert torch.equal(made[:length], stored[:length])
    train = config({"shar_path": str(tmp_path / "coded")})
    assert "target_audio" not in next(iter(train_dataloader(train, TOKENIZER, codec_fingerprint="loudness-1")))
    with pytest.raises(DataError, match="loudness-1, but the model's codec is loudness-2"):
        next(iter(train_dataloader(train, TOKENIZER, codec_fingerprint="loudness-2")))


def test_encoding_in_place_keeps_the_rest(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 4), shard_size=2)
    before = list(read_blend([{"type": "lhotse_shar", "shar_path": raw}]))
    encode_shar(raw, raw, LoudnessCodec())
    after = list(read_blend([{"type": "lhotse_shar", "shar_path": raw}]))
    for old, new in zip(before, after, strict=True):
        assert new.load_target_codes().shape == (round(new.duration / 0.08), 2)
        assert (old.load_audio() == new.load_audio()).all()
        assert old.supervisions == new.supervisions


def test_stopped_encoding_goes_on(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", dialogues("d", 6), shard_size=2)
    encode_shar(raw, tmp_path / "coded", LoudnessCodec())
    (tmp_path / "coded" / "cuts.000001.jsonl.gz").unlink()
    codec, said = LoudnessCodec(), list[str]()
    assert encode_shar(raw, tmp_path / "coded", codec, progress=said.append) == 2
    assert codec.num_calls == 1
    assert len(said) == 3
    assert encode_shar(raw, tmp_path / "coded", LoudnessCodec("loudness-2")) == 6, "another codec's codes were kept"
    cuts = read_blend([{"type": "lhotse_shar", "shar_path": str(tmp_path / "coded")}])
    assert {cut.codec_fingerprint for cut in cuts} == {"loudness-2"}


def test_nothing_to_encode_names_the_cut(tmp_path: Path) -> None:
    raw = write_shar(tmp_path / "raw", [dialogue("fine"), dialogue("mute", audio=False)])
    with pytest.raises(DataError, match=r"cut mute of .* has no target_audio to encode"):
        encode_shar(raw, tmp_path / "coded", LoudnessCodec())
