import shutil

import numpy as np
import pytest
from lhotse import CutSet

from s2s_data import check_shar
from s2s_data.demo import DemoConfig, Voice, build_demo_corpus, corpus, plan_dialogues
from s2s_data.demo.corpus import first_words, whole_frames
from s2s_data.demo.dialogues import HELD_OUT_SHARE, all_exchanges, split_exchanges
from s2s_data.demo.voices import trim_silence
from s2s_data.roles import Roles

PICO = Voice("pico-us", "pico", "en-US")


@pytest.fixture
def pico_alone(monkeypatch):
    """Every speaker is Pico's, which pip brings: CI has no flite."""
    monkeypatch.setattr(corpus, "AGENT_VOICE", Voice("pico-gb", "pico", "en-GB"))
    monkeypatch.setattr(corpus, "USER_VOICES", (PICO,))
    monkeypatch.setattr(corpus, "HELDOUT_VOICE", Voice("pico-low", "pico", "en-US", pitch=0.7))


def words(exchanges):
    return {word.strip(".?:") for e in exchanges for word in e.question.split()}


def test_held_out_questions_never_occur_in_training_and_their_parts_do():
    training, heldout = split_exchanges(seed=0)
    assert not {e.question for e in training} & {e.question for e in heldout}
    assert len(training) + len(heldout) == len(all_exchanges())
    assert len(heldout) == pytest.approx(len(all_exchanges()) / HELD_OUT_SHARE, rel=0.15)
    assert words(heldout) <= words(training)


def test_answers_follow_from_their_questions():
    answers = {e.question: e.answer for e in all_exchanges()}
    assert answers["What is seven plus five?"] == "Seven plus five is twelve."
    assert answers["It is twelve o'clock. What time is it in one hour?"] == "It will be one o'clock."
    assert answers["Which day comes before Monday?"] == "Sunday comes before Monday."


def test_equal_arguments_plan_equal_dialogues():
    plans = [plan_dialogues(["a", "b"], "c", num_train=40, num_validation=4, barge_in_share=0.5) for _ in range(2)]
    assert plans[0] == plans[1]
    assert any(d.barge_ins for d in plans[0].train)
    assert {d.voice for d in plans[0].train} == {"a", "b"}
    assert {d.voice for d in plans[0].heldout_voice} == {"c"}


def test_a_cut_off_answer_ends_at_a_word():
    assert first_words("The capital of France is Paris.") == "The capital of"


def test_silence_is_trimmed_and_frames_are_whole():
    audio = np.concatenate([np.zeros(8000), 0.3 * np.ones(2000), np.zeros(8000)]).astype(np.float32)
    trimmed = trim_silence(audio)
    assert len(trimmed) == pytest.approx(2000 + 2 * 320, abs=1)
    padded = whole_frames(trimmed, 16000)
    assert len(padded) % 1280 == 0
    assert padded.max() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="silence"):
        trim_silence(np.zeros(100, dtype=np.float32))


@pytest.mark.usefixtures("pico_alone")
def test_a_spoken_corpus_is_one_that_training_can_use(tmp_path):
    config = DemoConfig(num_train=4, num_validation=1, barge_in_share=1.0)
    assert build_demo_corpus(tmp_path / "demo", config) == {"train": 4, "heldout": 1, "heldout_voice": 1}
    num_cuts, problems = check_shar(str(tmp_path / "demo" / "train"), Roles.of(["user"], ["agent"]))
    assert (num_cuts, problems) == (4, [])
    for cut in CutSet.from_shar(in_dir=str(tmp_path / "demo" / "train")):
        assert cut.load_audio().shape[1] == round(cut.duration * 16000)
        assert cut.load_target_audio().shape[1] == round(cut.duration * 22050)
        turns = cut.supervisions
        assert all(round(t.start / 0.08, 6).is_integer() and round(t.duration / 0.08, 6).is_integer() for t in turns)
        for turn in turns:
            if turn.speaker == "agent":  # the model's start code takes the first frame: nothing may sound there
                onset_S = cut.load_target_audio()[0, round(turn.start * 22050) :]
                assert abs(onset_S[:1764]).max() < 0.01 < abs(onset_S[1764:3528]).max()
        if len(turns) == 4:  # barged in: the second question starts before the first answer ends
            assert turns[2].start < turns[1].end
            assert not turns[1].text.endswith(".")
    with pytest.raises(FileExistsError, match="isn't empty"):
        build_demo_corpus(tmp_path / "demo", config)


def test_a_missing_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="apt-get install flite"):
        Voice("slt", "flite", "slt").say("an unspoken sentence")
    with pytest.raises(ValueError, match="unknown engine 'festival'"):
        Voice("x", "festival", "x").say("no")
