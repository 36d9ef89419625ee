"""Dialogues of text alone: turns on the frame grid with room for their tokens, silent cuts that training can use."""

import dataclasses
import itertools
import random

import pytest
from lhotse import CutSet

from s2s_data.check import check_shar
from s2s_data.dataset import DuplexDataset
from s2s_data.errors import DataError
from s2s_data.roles import Roles
from s2s_data.show.terminal import as_text as show_text
from s2s_data.show.view import find_cut, view_cut
from s2s_data.stats import corpus_stats
from s2s_data.stats.report import as_text
from s2s_data.talk import TalkConfig, build_talk_corpus, split_cases
from s2s_data.talk.corpus import text_talk, text_turns_of
from s2s_data.talk.text import LAST_WORD_FRAMES, most_tokens, text_cut, text_turns
from s2s_data.talk.voices import USER_VOICES
from tests.s2s_data.builders import WordTokenizer

TRAINING, _, _ = split_cases(seed=0)
ROLES = Roles.of(["user"], ["agent"])
CORPUS = TalkConfig()


def talks(count):
    return [text_talk("read", i, TRAINING, CORPUS) for i in range(count)]


def test_turns_follow_one_another_and_hold_their_tokens():
    for talk in talks(50):
        assert not talk.pauses
        assert not talk.barge_ins
        turns = text_turns_of(talk, CORPUS, most_tokens)
        assert [turn.role for turn in turns] == ["user", "agent"] * len(talk.exchanges)
        for question, answer, exchange in zip(turns[::2], turns[1::2], talk.exchanges, strict=True):
            assert question.text == exchange.question
            assert answer.spans == exchange.phrases
            assert answer.start - question.end == CORPUS.answer_gap_frames
            assert question.times[-1][2] >= LAST_WORD_FRAMES
        for turn in turns:
            assert [span for span, _, _ in turn.times] == list(turn.spans)
            assert all(count >= most_tokens(span) for span, _, count in turn.times)
            assert all(first + count == after for (_, first, count), (_, after, _) in itertools.pairwise(turn.times))
        for answer, question in itertools.pairwise(turns):
            assert answer.end < question.start


def test_a_slow_reader_takes_more_frames():
    class Rng(random.Random):
        def uniform(self, a, b):
            return ends[a < b and self.is_slow]

    (talk,), ends = talks(1), (0.3, 1.0)
    lengths = []
    for is_slow in (False, True):
        rng = Rng(0)
        rng.is_slow = is_slow
        lengths.append(text_turns(talk, rng, lambda span: 1, answer_gap=6)[-1].end)
    assert lengths[1] > 1.5 * lengths[0]


def test_a_span_has_no_more_tokens_than_it_has_room_for():
    assert [most_tokens(span) for span in ("a", "is", "Sure.", "131", "7 dollars")] == [2, 2, 4, 4, 7]


def test_a_cut_is_silent_and_its_text_is_that_of_its_turns():
    talk = talks(1)[0]
    turns = text_turns_of(talk, CORPUS, most_tokens)
    cut = text_cut("t", turns, turns[-1].end + 8, 16000, 22050)
    batch = DuplexDataset(WordTokenizer(), spread_source_text=True, spread_target_text=True)[[cut]]
    assert batch["text_only"].tolist() == [True]
    assert batch["target_tokens"].shape == (1, turns[-1].end + 8)
    assert not batch["source_audio"].any()
    assert not batch["target_audio"].any()
    assert batch["num_dropped_tokens"].tolist() == [0]
    tokenizer = WordTokenizer()
    for name, role, first in (("source", "user", 1), ("target", "agent", 2)):
        said = [turn for turn in turns if turn.role == role]
        assert batch[f"{name}_texts"] == [" ".join(turn.text for turn in said)]
        frames = batch[f"{name}_tokens"][0]
        assert (frames == tokenizer.bos_id).nonzero()[:, 0].tolist() == [turn.start for turn in said]
        first_words = [tokenizer.text_to_ids(turn.text)[0] for turn in said]
        assert [int(frames[turn.start + first]) for turn in said] == first_words


def test_a_corpus_has_them_beside_what_is_spoken(tmp_path):
    voices = {"agent_voice": USER_VOICES[0], "user_voices": USER_VOICES[:1], "heldout_voices": USER_VOICES[:1]}
    config = TalkConfig(hours=0.01, num_heldout=1, texts_per_dialogue=3, **voices)
    hours = build_talk_corpus(tmp_path / "talk", config)
    assert list(hours)[-1] == "text"
    num_cuts, problems = check_shar(str(tmp_path / "talk/text"), ROLES)
    assert (num_cuts, problems) == (6, [])
    with pytest.raises(DataError, match="all of its 6 dialogues are text alone"):
        corpus_stats(str(tmp_path / "talk/text"), ROLES)
    both = [str(tmp_path / "talk" / name) for name in ("text", "corpus/train")]
    stats = corpus_stats(both, ROLES)
    assert (stats.num_dialogues, stats.num_text_only) == (2, 6)
    assert "beside them, text alone" in as_text(stats)
    shown = show_text(view_cut(find_cut(both[0]), ROLES)).splitlines()[0]
    assert shown.startswith("cut text-000000: ")
    assert shown.endswith(" frames, text alone")
    cuts = list(CutSet.from_shar(in_dir=str(tmp_path / "talk/text")))
    assert all(cut.custom["text_only"] is True for cut in cuts)
    assert len({cut.supervisions[0].text for cut in cuts}) > 1
    build_talk_corpus(tmp_path / "spoken", dataclasses.replace(config, texts_per_dialogue=0))
    assert not (tmp_path / "spoken/text").exists()
    with pytest.raises(DataError, match="text for each spoken one are -1: give 0 or more"):
        build_talk_corpus(tmp_path / "less", dataclasses.replace(config, texts_per_dialogue=-1))
