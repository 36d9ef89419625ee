"""Role swap, overlap data and speech QA, through a blend and by themselves."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import MonoCut, Recording
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from s2s_data import DataError, read_blend, validation_dataloaders
from s2s_data.audio import load_audio
from s2s_data.blend import parse_blend
from s2s_data.converters import CONVERTERS, QuestionAnswerToDuplex, ReverseRole
from s2s_data.roles import Roles
from tests.s2s_data.builders import (
    SOURCE_RATE_HZ,
    TARGET_RATE_HZ,
    WordTokenizer,
    config,
    dialogue,
    dialogues,
    write_shar,
)

REVERSE = "s2s_duplex_reverse_role"
OVERLAP = "s2s_duplex_overlap_as_s2s_duplex"
QUESTION_ANSWER = "sqa_as_s2s_duplex"


def shar_entry(path: str, **more: Any) -> dict[str, Any]:
    return {"type": "lhotse_shar", "shar_path": path, **more}


def turns_of(cut: Cut) -> list[tuple[str | None, float, float, str | None]]:
    return [(turn.speaker, turn.start, turn.duration, turn.text) for turn in cut.supervisions]


def convert(entry_type: str, cut: Cut, **keys: Any) -> MonoCut:
    converted = CONVERTERS[entry_type](**keys)(cut)
    assert isinstance(converted, MonoCut)
    return converted


def test_reversed_roles_swap_turns_and_audio(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 3))
    plain = list(read_blend([shar_entry(shar)]))
    swapped = list(read_blend([{"type": REVERSE, "shar_path": shar, "tags": {"lang": "en"}}]))
    assert len(plain) == len(swapped) == 3
    for before, after in zip(plain, swapped, strict=True):
        assert turns_of(after) == [("agent", 0.0, 0.8, "what is two"), ("user", 0.88, 0.72, "it is four")]
        assert (after.id, after.duration, after.lang, after.task) == (before.id, before.duration, "en", REVERSE)
        for field, was in (("recording", "target_audio"), ("target_audio", "recording")):
            for rate_hz in (SOURCE_RATE_HZ, TARGET_RATE_HZ):
                np.testing.assert_array_equal(load_audio(after, field, rate_hz), load_audio(before, was, rate_hz))


def test_roles_reversed_twice_are_as_they_were(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 3))
    inner = {"type": REVERSE, "input_cfg": [shar_entry(shar)]}
    twice = list(read_blend([{"type": REVERSE, "input_cfg": [{"type": "group", "input_cfg": [inner]}]}]))
    for before, after in zip(read_blend([shar_entry(shar)]), twice, strict=True):
        assert turns_of(after) == turns_of(before)
        np.testing.assert_array_equal(after.load_audio(), before.load_audio())


def test_converters_around_work_from_the_inside_out(tmp_path: Path) -> None:
    cuts = dialogues("d", 1)
    cuts[0].agent_segments = [{"start": 0.0, "end": 0.5, "text": "hello"}]
    cuts[0].user_segments = [{"start": 0.6, "end": 1.0, "text": "hi"}]
    shar = write_shar(tmp_path / "shar", cuts)
    (cut,) = read_blend([{"type": REVERSE, "input_cfg": [{"type": OVERLAP, "shar_path": shar}]}])
    assert turns_of(cut) == [("user", 0.0, 0.5, "hello"), ("agent", 0.6, 0.4, "hi")]
    assert cut.task == REVERSE


def test_roles_names_are_the_configs() -> None:
    turns = [("Caller", 0, 0.4, "a"), ("BOT", 0.4, 0.4, "b"), ("narrator", 0.8, 0.4, "c")]
    cut = convert(
        REVERSE,
        dialogue("d", turns=turns),
        agent_roles=("bot",),
        user_roles=("caller",),
        target_agent_name="A",
        target_user_name="U",
    )
    assert [turn.speaker for turn in cut.supervisions] == ["A", "U", "narrator"]
    with pytest.raises(DataError, match=r"\['bot'\] is in agent_roles and in user_roles"):
        ReverseRole(agent_roles=("bot",), user_roles=("Bot",))


def test_codes_of_the_wrong_side_are_taken_off(tmp_path: Path) -> None:
    cuts = dialogues("d", 2, codes=True, fingerprint="codec-a")
    shar = write_shar(tmp_path / "shar", cuts, codes=True)
    assert parse_blend("d", shar_path=shar).has_codes
    for entry_type in (REVERSE, QUESTION_ANSWER):
        blend = parse_blend("d", input_cfg=[{"type": entry_type, "shar_path": shar}])
        assert not blend.has_codes
        for cut in (*blend.metadata(), *blend.once(with_target_audio=False)):
            assert not {"target_codes", "codec_fingerprint"} & cut.custom.keys()
        for cut in blend.once(with_target_audio=False):
            load_audio(cut, "recording", SOURCE_RATE_HZ)
    overlap = parse_blend("d", input_cfg=[{"type": OVERLAP, "shar_path": shar}])
    assert overlap.has_codes


def test_codes_alone_cant_be_reversed(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 2, codes=True, audio=False), codes=True, audio=False)
    with pytest.raises(DataError, match=r"d.input_cfg\[0\].shar_path .* target_codes alone, .* needs target_audio"):
        parse_blend("d", input_cfg=[{"type": REVERSE, "shar_path": shar}])


def test_cut_that_cant_be_reversed_is_named() -> None:
    with pytest.raises(DataError, match="cut mute has no target_audio: swapping roles needs the agent's audio"):
        ReverseRole()(dialogue("mute", audio=False))
    stereo = dialogue("stereo")
    stereo.recording.channel_ids = [0, 1]
    with pytest.raises(DataError, match="cut stereo: its recording has 2 channels"):
        ReverseRole()(stereo)


def overlap_cut(cut_id: str, *, agent: list[dict[str, Any]], user: list[dict[str, Any]]) -> MonoCut:
    cut = dialogue(cut_id, turns=())
    cut.agent_segments, cut.user_segments = agent, user
    return cut


OVERLAPPING = {
    "agent": [{"start": 0.1, "end": 0.9, "text": "hello"}, {"start": 1.2, "end": 1.6, "text": "sure"}],
    "user": [{"start": 0.8, "end": 1.3, "text": "help"}],
}


def test_overlapping_segments_become_turns() -> None:
    cut = convert(OVERLAP, overlap_cut("d", **OVERLAPPING))
    assert turns_of(cut) == [("agent", 0.1, 0.8, "hello"), ("user", 0.8, 0.5, "help"), ("agent", 1.2, 0.4, "sure")]
    assert len({turn.id for turn in cut.supervisions}) == 3


def test_agents_text_moves_back_but_not_before_the_start() -> None:
    cut = convert(OVERLAP, overlap_cut("d", **OVERLAPPING), move_agent_text_back_by=0.4)
    assert [(turn.start, turn.end) for turn in cut.supervisions] == [(0.0, 0.9), (0.8, 1.6), (0.8, 1.3)]


def test_cuts_that_the_agent_begins_are_left_out_and_not_counted(tmp_path: Path) -> None:
    answers = [{"start": 1.0, "end": 1.5, "text": "sure"}]
    user_first = overlap_cut("user-first", agent=answers, user=[{"start": 0.0, "end": 1.0, "text": "help"}])
    agent_first, silent = overlap_cut("agent-first", **OVERLAPPING), overlap_cut("silent", agent=[], user=[])
    shar = write_shar(tmp_path / "shar", [agent_first, user_first, silent])
    for wanted, expected in ((True, ["user-first"]), (False, ["agent-first", "user-first", "silent"])):
        entry = {"type": OVERLAP, "shar_path": shar, "filter_samples_starting_with_agent": wanted}
        blend = parse_blend("d", input_cfg=[entry])
        assert [cut.id for cut in blend.once(with_target_audio=True)] == expected
        assert [cut.id for cut in blend.metadata()] == expected
        assert blend.num_cuts() == len(expected)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (None, "cut d: its agent_segments must be a list of {start, end, text}, but is None"),
        ([{"start": 0, "text": "hi"}], "cut d: its agent_segments must be a list of {start, end, text}"),
        ([{"start": 1.0, "end": 0.5, "text": "hi"}], "cut d: in its agent_segments .* ends before it starts"),
    ],
)
def test_wrong_segments_name_the_cut(segments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert(OVERLAP, overlap_cut("d", agent=segments, user=[]))


def test_question_and_answer_are_laid_one_after_the_other() -> None:
    qa = dialogue("qa", 1.0, turns=(), target_duration_s=2.0)
    qa.question, qa.answer = "what is two and two", "it is four"
    cut = convert(QUESTION_ANSWER, qa, lead_in_s=0.5, gap_s=0.2, tail_s=0.3)
    # on the frame grid of 80 ms: 0.5 -> 0.56, 1.76 -> 1.76, 4.06 -> 4.08
    assert turns_of(cut) == [("user", 0.56, 1.0, "what is two and two"), ("agent", 1.76, 2.0, "it is four")]
    assert cut.duration == 4.08
    for field, start_s, rate_hz in (("recording", 0.56, SOURCE_RATE_HZ), ("target_audio", 1.76, TARGET_RATE_HZ)):
        spoken = getattr(qa, field).load_audio()[0]
        audio, start = load_audio(cut, field, rate_hz), round(start_s * rate_hz)
        assert len(audio) == round(4.08 * rate_hz)
        np.testing.assert_array_equal(audio[start : start + len(spoken)], spoken)
        assert not audio[:start].any()
        assert not audio[start + len(spoken) :].any()


def test_turns_of_question_and_answer_move_with_their_audio() -> None:
    turns = [("caller", 0.2, 0.5, "two and two"), ("assistant", 0.1, 0.4, "four"), ("assistant", 0.6, 0.2, "sir")]
    cut = convert(QUESTION_ANSWER, dialogue("qa", 1.6, turns), gap_s=0.0)
    # the answer follows the question's last turn, at 0.7 s, not its audio, which has silence at its end
    assert turns_of(cut) == [
        ("user", 0.2, 0.5, "two and two"),
        ("agent", pytest.approx(0.82), 0.4, "four"),
        ("agent", pytest.approx(1.32), 0.2, "sir"),
    ]
    assert cut.duration == pytest.approx(2.4)  # 0.72 + 1.6 + a frame


def test_words_times_stay_with_their_turns() -> None:
    cut = dialogue("qa")
    for turn in cut.supervisions:
        turn.alignment = {"word": [AlignmentItem(turn.text, turn.start + 0.16, 0.4)]}
    before = cut.to_dict()
    roles = Roles.of(["user"], ["agent"])
    for made in (convert(REVERSE, cut), convert(QUESTION_ANSWER, cut, lead_in_s=0.16)):
        for turn in roles.turns(made):
            ((text, *times_s),) = turn.words
            assert text == turn.text
            assert times_s == pytest.approx([0.16, 0.4])
    assert cut.to_dict() == before


@pytest.mark.parametrize("num_workers", [0, 1])
def test_converted_dialogues_come_in_batches(tmp_path: Path, num_workers: int) -> None:
    shar = write_shar(tmp_path / "shar", [dialogue("d", 1.6)])
    entry = {"type": QUESTION_ANSWER, "shar_path": shar}
    cfg = config(sets={"qa": {"input_cfg": [entry], "num_workers": num_workers}})
    (batch,) = validation_dataloaders(cfg, WordTokenizer())["qa"]
    # question from 0 to 0.8 s, answer's audio at 1.12 s, its turn 0.88 s into that; 2.72 s and a frame in all
    assert batch["target_token_lens"].tolist() == [35]
    assert batch["source_audio_lens"].tolist() == [round(2.8 * SOURCE_RATE_HZ)]
    assert batch["target_audio_lens"].tolist() == [round(2.8 * TARGET_RATE_HZ)]
    assert batch["target_tokens"][0].tolist().index(WordTokenizer.bos_id) == 25
    assert batch["source_tokens"][0].tolist().index(WordTokenizer.eos_id) == 10


@given(
    question_s=st.floats(0.1, 30),
    answer_s=st.floats(0.1, 30),
    lead_in_s=st.floats(0, 3),
    gap_s=st.floats(0, 3),
    tail_s=st.floats(0, 3),
    frame_length=st.sampled_from([0.08, 0.04, 0.1]),
)
def test_question_and_answer_never_meet_and_begin_on_frames(
    question_s: float, answer_s: float, lead_in_s: float, gap_s: float, tail_s: float, frame_length: float
) -> None:
    cut = unread_cut(question_s, answer_s)
    converted = QuestionAnswerToDuplex(lead_in_s, gap_s, tail_s, frame_length)(cut)
    question, answer = converted.supervisions
    for placed_s in (question.start, answer.start, converted.duration):
        assert math.isclose(placed_s / frame_length, round(placed_s / frame_length), abs_tol=1e-6)
    tolerance_s = 1e-6
    assert -tolerance_s <= question.start - lead_in_s < frame_length + tolerance_s
    assert -tolerance_s <= answer.start - question.end - gap_s < frame_length + tolerance_s
    assert -tolerance_s <= converted.duration - answer.end - tail_s < frame_length + tolerance_s
    assert (question.duration, answer.duration) == pytest.approx((cut.duration, cut.target_audio.duration))


def unread_cut(question_s: float, answer_s: float) -> MonoCut:
    """A cut whose audio is nowhere: reading it would fail."""

    def unread(name: str, duration_s: float, rate_hz: int) -> Recording:
        num_samples = round(duration_s * rate_hz)
        return Recording(name, [], rate_hz, num_samples, num_samples / rate_hz, channel_ids=[0])

    question = unread("question", question_s, SOURCE_RATE_HZ)
    cut = MonoCut("qa", 0, question.duration, 0, recording=question)
    cut.target_audio, cut.question, cut.answer = unread("answer", answer_s, TARGET_RATE_HZ), "why", "so"
    return cut


def test_question_or_answer_without_audio_or_text_is_named() -> None:
    with pytest.raises(DataError, match="cut qa has no target_audio: the spoken answer is missing"):
        QuestionAnswerToDuplex()(dialogue("qa", audio=False))
    with pytest.raises(DataError, match="cut qa has no turn of the answer and no text in a custom field answer"):
        QuestionAnswerToDuplex()(dialogue("qa", turns=[("user", 0.0, 0.4, "why")]))
    with pytest.raises(DataError, match="is a part of a longer recording"):
        QuestionAnswerToDuplex()(dialogue("qa").truncate(duration=1.0))


@pytest.mark.parametrize(
    ("entry_type", "keys", "message"),
    [
        (QUESTION_ANSWER, {"gap_s": -1}, "gap_s is -1, but must be seconds, 0 or more"),
        (QUESTION_ANSWER, {"frame_length": 0}, "frame_length is 0, but must be above 0 seconds"),
        (OVERLAP, {"move_agent_text_back_by": "a bit"}, "move_agent_text_back_by is 'a bit', but must be seconds"),
        (OVERLAP, {"filter_samples_starting_with_agent": 2}, "filter_samples_.* is 2, but must be true or false"),
        (REVERSE, {"target_agent_name": 7}, "target_agent_name is 7, but must be a speaker's name"),
    ],
)
def test_wrong_value_names_the_key(entry_type: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"d.input_cfg\[0\]: {message}"):
        parse_blend("d", input_cfg=[{"type": entry_type, "shar_path": "x", **keys}])


@pytest.mark.parametrize("entry_type", sorted(CONVERTERS))
def test_planning_and_loading_agree(tmp_path: Path, entry_type: str) -> None:
    cuts = dialogues("d", 3)
    for cut in cuts:
        cut.agent_segments, cut.user_segments = OVERLAPPING["agent"], OVERLAPPING["user"]
    blend = parse_blend("d", input_cfg=[{"type": entry_type, "shar_path": write_shar(tmp_path / "shar", cuts)}])
    planned, loaded = list(blend.metadata()), list(blend.once(with_target_audio=True))
    assert len(planned) == 3
    for one, other in zip(planned, loaded, strict=True):
        assert (one.duration, turns_of(one)) == (other.duration, turns_of(other))
        for key in ("recording_offset_s", "target_audio_offset_s"):
            assert one.custom.get(key) == other.custom.get(key)


@pytest.mark.parametrize("entry_type", sorted(CONVERTERS))
def test_converter_leaves_its_cut_alone_and_can_be_sent_to_a_worker(entry_type: str) -> None:
    cut, same = overlap_cut("d", **OVERLAPPING), overlap_cut("d", **OVERLAPPING)
    for made in (cut, same):
        made.question, made.answer = "why", "so"
    converter = CONVERTERS[entry_type]()
    assert converter(cut) == pickle.loads(pickle.dumps(converter))(cut)
    assert cut == same
