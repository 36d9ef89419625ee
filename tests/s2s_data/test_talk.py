"""The corpus of tens of hours: what is asked can be answered, and what is held out isn't trained on."""

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from lhotse import CutSet
from lhotse.shar import SharWriter

from s2s_data import DuplexDataset, check_shar
from s2s_data.cli import main
from s2s_data.demo import Voice
from s2s_data.demo.corpus import samples_per_frame
from s2s_data.errors import DataError
from s2s_data.roles import Roles
from s2s_data.talk import FRAMES, SKILLS, TalkConfig, ask, build_talk_corpus, dialogue, split_cases
from s2s_data.talk.corpus import FIELDS, lay_out, render, splits
from s2s_data.talk.numbers import aloud, spoken
from s2s_data.talk.rooms import noise, room
from s2s_data.talk.skills import MISHEARD, phrases
from s2s_data.talk.voices import HELDOUT_VOICES, USER_VOICES
from tests.s2s_data.builders import WordTokenizer

TRAINING, CASES, WORDINGS = split_cases(seed=0)
# CI has no flite: every speaker is Pico's, which pip brings.
SMALL = TalkConfig(
    hours=0.03, num_heldout=2, texts_per_dialogue=0, dialogues_per_shard=2, pause_share=0.5, barge_in_share=0.5,
    agent_voice=Voice("pico-gb", "pico", "en-GB"),
    user_voices=(Voice("pico-us", "pico", "en-US"), Voice("fast", "pico", "en-US", speed=1.1)),
    heldout_voices=(Voice("low", "pico", "en-US", pitch=0.7),),
)  # fmt: skip


def some(split, count, **shares):
    shares = {"pause_share": 0.25, "barge_in_share": 0.15} | shares
    return [dialogue("train", i, split, ["a", "b"], seed=0, **shares) for i in range(count)]


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (99, "ninety-nine"), (300, "three hundred"),
     (541, "five hundred forty-one"), (210, "two hundred ten")],
)  # fmt: skip
def test_numbers_as_spoken(number, words):
    assert spoken(number) == words
    assert aloud(f"It's {number}.") == f"It's {words}."


def test_every_case_fits_its_skill_and_its_value_is_in_the_answer():
    for skill in SKILLS:
        for frame, case in itertools.product(FRAMES, skill.cases):
            exchange = ask(skill, frame, case)
            assert "{" not in exchange.question + exchange.answer
            assert exchange.question[0].isupper()
            assert exchange.question[-1] in ".?"
            assert re.search(rf"\b{re.escape(exchange.value)}\b", exchange.answer, re.IGNORECASE), exchange
            assert exchange.answer.startswith(frame.opening)


@pytest.mark.parametrize(
    ("skill", "case", "value"),
    [
        ("plus", {"a": "7", "b": "15"}, "22"),
        ("times", {"a": "12", "b": "12"}, "144"),
        ("half", {"a": "36"}, "18"),
        ("larger", {"a": "4", "b": "54"}, "54"),
        ("hours later", {"a": "11", "n": "4"}, "3 o'clock"),
        ("hours earlier", {"a": "1", "n": "2"}, "11 o'clock"),
        ("days later", {"a": "Saturday", "n": "2"}, "Monday"),
        ("days earlier", {"a": "Monday", "n": "1"}, "Sunday"),
        ("months later", {"a": "November", "n": "3"}, "February"),
        ("first month", {"a": "May", "b": "March"}, "March"),
        ("season", {"a": "December"}, "winter"),
        ("season", {"a": "March"}, "spring"),
        ("days of a month", {"a": "June"}, "30"),
        ("legs", {"a": "spiders", "n": "3"}, "24"),
        ("price", {"a": "hats", "n": "3", "b": "5"}, "15 dollars"),
        ("change", {"a": "10", "b": "7"}, "3 dollars"),
        ("minutes", {"a": "2"}, "120"),
        ("opposite", {"a": "big"}, "small"),
        ("last word", {"a": "the farmer opens the blue door"}, "door"),
    ],
)
def test_answers_are_right(skill, case, value):
    cases = next(each.cases for each in SKILLS if each.name == skill)
    found = [each["value"] for each in cases if case.items() <= each.items()]
    assert found == [value]


def test_values_stand_in_answers_as_recognisers_write_them():
    """The normaliser makes "two dollars" "$2" and "two o'clock" one word: the number alone isn't in them."""
    from s2s_eval.metrics import contains

    for skill in SKILLS:
        for case in skill.cases[::7]:
            exchange = ask(skill, FRAMES[0], case)
            assert contains(exchange.answer, exchange.value, "en"), exchange


def test_hundreds_of_wordings_each_with_one_answer_for_a_case():
    assert len(SKILLS) * len(FRAMES) > 300
    for skill in SKILLS:
        questions = [ask(skill, frame, case).question for frame in FRAMES for case in skill.cases]
        assert len(set(questions)) == len(questions), skill.name


def test_what_is_held_out_is_never_trained_on_and_its_parts_are():
    for name, cases in CASES.cases.items():
        assert cases
        assert not [case for case in cases if case in TRAINING.cases[name]]
    assert not WORDINGS.wordings & TRAINING.wordings
    assert {skill for skill, _ in TRAINING.wordings} == {skill.name for skill in SKILLS}
    assert {frame for _, frame in TRAINING.wordings} == {frame.name for frame in FRAMES}
    assert len(WORDINGS.wordings) >= len(SKILLS)
    assert not {voice.name for voice in USER_VOICES} & {voice.name for voice in HELDOUT_VOICES}
    assert {voice.speaker for voice in HELDOUT_VOICES}.isdisjoint(voice.speaker for voice in USER_VOICES)


def test_no_answer_hangs_on_what_the_recogniser_does_not_hear():
    values = {
        exchange.value for split in (TRAINING, CASES) for talk in some(split, 1500) for exchange in talk.exchanges
    }
    assert len(values) > 200
    assert not values & MISHEARD


def test_what_leans_on_answers_asks_no_held_out_case_either():
    held_out = {(case["a"], case["b"]) for case in CASES.cases["plus"]}
    for talk in some(TRAINING, 1500):
        for before, exchange in itertools.pairwise((talk.exchanges[0], *talk.exchanges)):
            if exchange.kind == "plus again":
                assert (before.value, exchange.question.removeprefix("And plus ").rstrip("?")) not in held_out
            if exchange.kind == "sum":
                told = talk.exchanges[0].question.removeprefix("Remember the number ").rstrip(".")
                assert (told, exchange.question.removeprefix("What is my number plus ").rstrip("?")) not in held_out
    assert len(held_out) > 100
    assert {a for a, _ in held_out} <= {str(n) for n in range(1, 51)}


def test_what_has_to_be_known_by_heart_is_not_held_out():
    tables = {skill.name for skill in SKILLS if len(skill.cases) < 100}
    assert {"capital", "days later", "plural"} < tables
    assert not tables & CASES.cases.keys()
    assert len(CASES.cases) >= 12


def test_dialogues_lean_on_what_was_said():
    kinds = {exchange.kind for talk in some(TRAINING, 400) for exchange in talk.exchanges}
    assert {"plus again", "next day", "capital again", "name", "food", "number", "sum"} <= kinds
    for talk in some(TRAINING, 400):
        for before, exchange in itertools.pairwise(talk.exchanges):
            if exchange.kind == "plus again":
                first, more = before.value, exchange.question.removeprefix("And plus ").rstrip("?")
                assert int(exchange.value) == int(first) + int(more)
        if talk.exchanges[-1].kind == "name":
            assert talk.exchanges[-1].value in talk.exchanges[0].question


def test_a_dialogue_depends_on_nothing_but_its_number():
    assert some(TRAINING, 20) == some(TRAINING, 20)
    assert some(TRAINING, 20)[7] != some(TRAINING, 20)[8]


def test_pauses_and_barge_ins():
    talks = some(TRAINING, 200, pause_share=1.0, barge_in_share=1.0)
    assert all(len(talk.exchanges) - 1 not in talk.barge_ins for talk in talks)
    assert any(talk.barge_ins for talk in talks)
    for talk in talks:
        for i, pause in talk.pauses.items():
            assert 2 <= pause.after_words <= len(talk.exchanges[i].question.split()) - 2
    assert not any(talk.pauses or talk.barge_ins for talk in some(TRAINING, 50, pause_share=0.0, barge_in_share=0.0))


def test_turns_lie_as_planned():
    voice = SMALL.user_voices[0]
    talk = next(talk for talk in some(TRAINING, 50, barge_in_share=1.0) if 0 in talk.barge_ins)
    turns, num_frames = lay_out(talk, SMALL, voice)
    question, answer, next_question = turns[:3]
    assert question.start == talk.gaps[0]
    assert answer.start == question.end + SMALL.answer_gap_frames
    assert next_question.start == max(answer.end - talk.barge_ins[0], answer.start + 2)
    assert answer.value is None
    phrases = talk.exchanges[0].phrases
    assert answer.text == " ".join(phrases[: max(2, len(phrases) // 2)])
    assert turns[-1].text == talk.exchanges[-1].answer
    assert turns[-1].value == talk.exchanges[-1].value
    assert num_frames == turns[-1].end + SMALL.tail_frames


def test_who_cuts_in_is_heard_before_the_next_phrase_would_be_written():
    talks = [talk for talk in some(TRAINING, 40, barge_in_share=1.0) if talk.barge_ins]
    overlaps = []
    for talk in talks:
        turns, _ = lay_out(talk, SMALL, SMALL.user_voices[0])
        for i in talk.barge_ins:
            overlaps.append(turns[2 * i + 1].end - turns[2 * i + 2].start)
            assert turns[2 * i + 1].text != talk.exchanges[i].answer
    assert min(overlaps) >= 7
    assert max(overlaps) > 10


def test_an_answer_in_phrases():
    case = {"a": "4", "b": "Anna", "value": "100 dollars"}
    assert phrases("the {a} of {b} is {value}.", case) == ("the", "4", "of", "Anna", "is", "100 dollars.")
    assert phrases("{value} is larger.", case) == ("100 dollars", "is larger.")
    for skill in SKILLS:
        for case in skill.cases:
            assert " ".join(phrases(skill.answer, case)) == skill.answer.format(**case)


def test_a_phrase_sounds_the_same_wherever_it_stands():
    talks = [talk for talk in some(TRAINING, 200) if not talk.barge_ins]
    sounds = {}
    size = samples_per_frame(SMALL.agent_rate_hz)
    for talk in talks[:12]:
        turns, _ = lay_out(talk, SMALL, SMALL.user_voices[0])
        for turn, exchange in zip(turns[1::2], talk.exchanges, strict=True):
            assert tuple(phrase for phrase, _, _ in turn.words) == exchange.phrases
            assert [turn.words[0][1], turn.words[-1][2]] == [2, turn.end - turn.start], "two frames of silence"
            for (phrase, first, end), (_, next_first, _) in itertools.pairwise(
                [*turn.words, ("", turn.words[-1][2], 0)]
            ):
                assert end == next_first
                audio_S = turn.audio[first * size : end * size]
                assert np.array_equal(sounds.setdefault(phrase, audio_S), audio_S), phrase
    assert len(sounds) < sum(len(exchange.phrases) for talk in talks[:12] for exchange in talk.exchanges)


def test_the_agent_s_text_stands_where_it_is_said(tmp_path):
    talk = next(talk for talk in some(TRAINING, 50, barge_in_share=0.0) if len(talk.exchanges) == 1)
    cut = render(talk, SMALL, SMALL.user_voices[0], tmp_path)
    (agent,) = [turn for turn in Roles.of(["user"], ["agent"]).turns(cut) if turn.role == "agent"]
    tokenizer = WordTokenizer()
    plain, spread = (
        DuplexDataset(tokenizer, spread_target_text=key)[[cut]]["target_tokens"][0] for key in (False, True)
    )
    frames = (spread > tokenizer.eos_id).nonzero()[:, 0]
    start = round(agent.start_s / 0.08)
    starts = [round(phrase.start_s / 0.08) for phrase in agent.words]
    assert set(starts) <= set((frames - start).tolist()), "each phrase begins where it is said"
    assert spread[spread > 0].tolist() == plain[plain > 0].tolist(), "the same text and control tokens"


def test_a_corpus_that_training_can_use(tmp_path):
    hours = build_talk_corpus(tmp_path / "talk", SMALL)
    assert list(hours) == ["train", "heldout", "heldout_wording", "heldout_voice"]
    assert hours["train"] == pytest.approx(SMALL.hours, rel=0.5)
    for name, split in splits(SMALL).items():
        folder = str(tmp_path / "talk" / "corpus" / name)
        num_cuts, problems = check_shar(folder, Roles.of(["user"], ["agent"]))
        assert not problems
        cuts = list(CutSet.from_shar(in_dir=folder))
        assert num_cuts == len({cut.id for cut in cuts}) >= 2
        assert sum(cut.duration for cut in cuts) / 3600 == pytest.approx(hours[name])
        for cut in cuts:
            assert cut.custom["user_voice"] in {voice.name for voice in split.voices}
            agent = [turn for turn in cut.supervisions if turn.speaker == "agent"]
            for turn in agent:
                if turn.custom:
                    assert turn.custom["value"].lower() in turn.text.lower()
                assert " ".join(phrase.symbol for phrase in turn.alignment["word"]) == turn.text
            assert cut.load_audio().shape[1] * 22050 == cut.load_target_audio().shape[1] * 16000
    for name in ("noise", "rooms"):
        assert len(list((tmp_path / "talk" / name).iterdir())) >= 24
    with pytest.raises(FileExistsError, match="corpus is there already"):
        build_talk_corpus(tmp_path / "talk", SMALL)


def test_pauses_have_their_times(tmp_path, capsys):
    """From the plan to the text channel, by way of a Shar."""
    voice = SMALL.user_voices[0]
    talk = next(talk for talk in some(TRAINING, 50, pause_share=1.0) if list(talk.pauses) == [0])
    (pause,) = talk.pauses.values()
    (tmp_path / "shar").mkdir()
    with SharWriter(str(tmp_path / "shar"), FIELDS) as writer:
        writer.write(render(talk, SMALL, voice, tmp_path))
    (cut,) = CutSet.from_shar(in_dir=str(tmp_path / "shar"))
    question, *others = cut.supervisions
    assert all(turn.alignment is None for turn in others if turn.speaker == "user")
    before, behind = question.alignment["word"]
    assert f"{before.symbol} {behind.symbol}" == question.text == talk.exchanges[0].question
    assert len(before.symbol.split()) == pause.after_words
    assert (before.start, round(behind.end, 2)) == (question.start, round(question.end, 2))
    assert behind.start - before.end == pytest.approx(pause.num_frames * 0.08)
    assert not cut.load_audio()[0, round(before.end * 16000) : round(behind.start * 16000)].any()
    assert not check_shar(str(tmp_path / "shar"), Roles.of(["user"], ["agent"]))[1]
    assert main(["show", str(tmp_path / "shar")]) == 0
    assert question.text in capsys.readouterr().out
    batch = DuplexDataset(WordTokenizer(), spread_source_text=True)[[cut]]
    first_behind = WordTokenizer().text_to_ids(behind.symbol)[0]
    assert batch["source_tokens"][0, round(behind.start / 0.08)] == first_behind


def test_a_corpus_that_broke_off_goes_on(tmp_path):
    """By what a whole one says, since Pico's sound differs each time; shards that are whole stay as they are."""
    config = replace(SMALL, dialogues_per_shard=2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    hours = build_talk_corpus(whole, config)

    class Killed(BaseException):
        pass

    def kill(line):
        if "heldout" in line:
            raise Killed

    with pytest.raises(Killed):
        build_talk_corpus(broken, config, progress=kill)
    first = sorted((broken / "corpus" / "train").iterdir())
    before = {path: path.read_bytes() for path in first}
    left = broken / "corpus" / "heldout_voice" / ".part-000000"  # what a kill leaves in the middle of a shard
    left.mkdir(parents=True)
    (left / "cuts.000000.jsonl.gz").write_bytes(b"half")
    (broken / "corpus" / "train" / ".part-000000").mkdir()  # and behind it
    with pytest.raises(DataError, match=r"begun with other settings, which lie in .*unfinished\.json"):
        build_talk_corpus(broken, replace(config, seed=1))
    assert build_talk_corpus(broken, config) == pytest.approx(hours, rel=0.1)
    assert before == {path: path.read_bytes() for path in first}
    assert not (broken / "unfinished.json").exists()
    for name in splits(config):
        cuts = [list(CutSet.from_shar(in_dir=str(folder / "corpus" / name))) for folder in (whole, broken)]
        texts = [[[turn.text for turn in cut.supervisions] for cut in each] for each in cuts]
        assert texts[0] == texts[1]
        names = [sorted(path.name for path in (folder / "corpus" / name).iterdir()) for folder in (whole, broken)]
        assert names[0] == names[1]
    with pytest.raises(FileExistsError, match="is there already"):
        build_talk_corpus(broken, config)


def test_processes_say_the_same(tmp_path):
    """Not to the sample: Pico speaks a little faster or slower each time."""
    said = []
    for processes in (1, 2):
        build_talk_corpus(tmp_path / str(processes), SMALL, num_processes=processes)
        folders = [str(tmp_path / str(processes) / "corpus" / name) for name in splits(SMALL)]
        cuts = [cut for folder in folders for cut in CutSet.from_shar(in_dir=folder)]
        turns = {cut.id: [(turn.text, turn.speaker, turn.custom) for turn in cut.supervisions] for cut in cuts}
        said.append((turns, {cut.id: cut.custom["user_voice"] for cut in cuts}))
    assert said[0] == said[1]


def test_noises_and_rooms():
    rng = np.random.default_rng(0)
    spectra = {color: np.abs(np.fft.rfft(noise(color, rng))) for color in ("white", "brown")}
    low = {color: spectrum[: len(spectrum) // 8].sum() / spectrum.sum() for color, spectrum in spectra.items()}
    assert low["white"] == pytest.approx(1 / 8, abs=0.02)
    assert low["brown"] > 0.6
    response_S = room(rng)
    assert response_S.argmax() == 0
    assert np.abs(response_S[-len(response_S) // 10 :]).max() < 0.5 * np.abs(response_S[16:]).max()


@pytest.mark.parametrize(
    ("argument", "value"), [("--hours", "0"), ("--heldout", "0"), ("--processes", "0"), ("--hours", "-3")]
)
def test_numbers_that_make_no_corpus(argument, value, tmp_path, capsys):
    assert main(["talk", str(tmp_path / "talk"), argument, value]) == 2
    assert "must be positive" in capsys.readouterr().err
    assert not (tmp_path / "talk").exists()


def test_a_missing_engine_is_told_before_anything_is_written(tmp_path):
    unknown = replace(SMALL, heldout_voices=(Voice("x", "festival", "x"),))
    with pytest.raises(ValueError, match="unknown engine 'festival'"):
        build_talk_corpus(tmp_path / "talk", unknown)
    assert not (tmp_path / "talk").exists()


def test_surroundings_can_be_read(tmp_path):
    from s2s_data.talk.rooms import write_surroundings

    write_surroundings(tmp_path, seed=0, num_noises=3, num_rooms=2)
    audio_S, rate_hz = soundfile.read(tmp_path / "noise" / "000.flac")
    assert rate_hz == 16000
    assert 0.3 < np.abs(audio_S).max() <= 0.5
