"""Words get the times at which they are heard, and the channel of the user's text follows."""

import shutil

import pytest
from lhotse import CutSet

from recipes.talk import align
from recipes.talk.align import Word, heard_words, times
from s2s_data.roles import Roles

LABELS = ["a", "b", " the", " for", "ty"]
NONE = len(LABELS)
HEARD = [Word(text, 10 + i, 10.2 + i) for i, text in enumerate(("what", "is", "forty", "two"))]


def turn(text, start=10.0, duration=4.0):
    return {"text": text, "start": start, "duration": duration, "speaker": "user"}


def test_labels_are_words_from_frame_to_frame():
    labels = [NONE, 0, 0, NONE, 2, NONE, 3, 3, NONE, 4, 4, NONE]
    assert heard_words(labels, LABELS, 0.5) == [Word("a", 0.5, 1.0), Word("the", 2, 2.5), Word("forty", 3.0, 5.0)]
    assert heard_words([0, NONE, 0], LABELS, 1) == [Word("aa", 0, 3)], "once more, behind none"
    assert not heard_words([NONE, NONE], LABELS, 1)


def test_words_have_the_times_at_which_they_are_heard():
    assert times(turn("What is forty-two?"), HEARD) == [
        ("What", 9.84, 0.2, 1), ("is", 10.84, 0.2, 1), ("forty-two?", 11.84, 1.2, 1),
    ]  # fmt: skip


def test_digits_are_heard_as_words():
    assert times(turn("What is 42?"), HEARD) == [*times(turn("What is forty-two?"), HEARD)[:2], ("42?", 11.84, 1.2, 1)]


def test_misheard_words_lie_between_their_neighbours():
    found = times(turn("What was forty one - two?"), HEARD)
    assert [word for word, *_ in found] == ["What", "was", "forty", "one", "-", "two?"]
    assert [start_s for _, start_s, *_ in found] == pytest.approx([9.84, 10.84, 11.84, 12.173, 12.507, 12.84], abs=1e-3)
    assert [score for *_, score in found] == [1, 0, 1, 0, 0, 1]


def test_only_what_is_heard_about_then_is_of_the_turn():
    assert [score for *_, score in times(turn("what is", start=10.5), HEARD)] == [0, 1]
    assert [score for *_, score in times(turn("forty two", start=11.9, duration=0.2), HEARD)] == [1, 0]


def test_a_turn_of_which_nothing_is_heard_is_spread():
    assert times(turn("what is it"), []) == [("what", 11, 0, 0), ("is", 12, 0, 0), ("it", 13, 0, 0)]
    assert times(turn(""), []) == []


@pytest.fixture
def shar(talk, tmp_path):
    return shutil.copytree(talk / "corpus/heldout", tmp_path / "shar")


def test_a_shar_is_aligned_once(shar, talk, capsys, monkeypatch):
    before = list(CutSet.from_shar(in_dir=str(shar)))
    monkeypatch.setattr(align, "BATCH", 1)
    assert align.main([str(talk / "encoder.nemo"), str(shar)]) == 0
    assert "% heard as they are" in capsys.readouterr().out
    roles = Roles.of(["user"], ["agent"])
    num_turns = 0
    for cut, old in zip(CutSet.from_shar(in_dir=str(shar)), before, strict=True):
        assert (cut.load_audio() == old.load_audio()).all()
        for one, other in zip(roles.turns(cut), roles.turns(old), strict=True):
            assert one._replace(words=()) == other._replace(words=())
            num_turns += one.role == "user"
            assert " ".join(word.text for word in one.words) == (one.text if one.role == "user" else "")
    assert num_turns
    written = {path: path.stat().st_mtime_ns for path in shar.iterdir()}
    assert align.main([str(talk / "encoder.nemo"), str(shar)]) == 0
    assert not capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in shar.iterdir()} == written


def test_processes_share_the_shards(shar, talk, capsys):
    for path in list(shar.glob("*.000000.*")):
        for number in (1, 2):
            shutil.copy(path, path.with_name(path.name.replace("000000", f"{number:06d}")))
    manifests = sorted(shar.glob("cuts.*.jsonl.gz"))
    assert len(manifests) == 3
    before = [path.read_bytes() for path in manifests]
    shared = [str(talk / "encoder.nemo"), str(shar), "--world-size", "2"]
    assert align.main([*shared, "--rank", "1"]) == 0
    assert [path.read_bytes() != old for path, old in zip(manifests, before, strict=True)] == [False, True, False]
    assert align.main([*shared, "--rank", "0"]) == 0
    assert all(path.read_bytes() != old for path, old in zip(manifests, before, strict=True))
    with pytest.raises(SystemExit):
        align.main([*shared, "--rank", "2"])
    assert "--rank is 2: it must be from 0 to --world-size - 1, which is 1" in capsys.readouterr().err


def test_what_is_missing_is_told(shar, tmp_path, capsys):
    assert align.main([str(tmp_path / "none.nemo"), str(shar)]) == 2
    assert "none.nemo: no such file; recipe:encoder makes one" in capsys.readouterr().err
    assert align.main([str(tmp_path / "none.nemo"), str(tmp_path)]) == 2
    assert "no cuts.*.jsonl.gz there" in capsys.readouterr().err
    cuts = CutSet.from_shar(in_dir=str(shar))
    assert not any(supervision.alignment for cut in cuts for supervision in cut.supervisions), "nothing was changed"
