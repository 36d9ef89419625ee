"""The text channel: where tokens stand, and that it is NeMo's on well-formed turns."""

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, SupervisionSegment

from s2s_data import DataError, DuplexDataset, FrameGrid, TextChannel, Turn, build_text_channel
from s2s_data.batch import TimedWords
from s2s_data.text_channel import TOO_LONG, TextFitLog
from tests.s2s_data.builders import TurnSpec, WordTokenizer, dialogue, dialogues

TOKENIZER = WordTokenizer()
PAD, BOS, EOS = 0, 1, 2
FRAME_S = 0.08
RATE_HZ = 16000


def channel(num_frames: int, *turns: tuple[int, int, str], spread: bool = False) -> tuple[list[int], int]:
    """Place turns that are given in frames: start, end, text."""
    made = [Turn("agent", start * FRAME_S, (end - start) * FRAME_S, text) for start, end, text in turns]
    made_channel = build_text_channel(made, FrameGrid(num_frames, FRAME_S, RATE_HZ), TOKENIZER, spread=spread)
    return made_channel.tokens_T.tolist(), made_channel.num_dropped_tokens


def ids(text: str) -> list[int]:
    return TOKENIZER.text_to_ids(text)


def test_turn_is_bos_text_pad_eos() -> None:
    assert channel(8, (1, 6, "one two")) == ([PAD, BOS, *ids("one two"), PAD, PAD, EOS, PAD], 0)


def test_turn_to_the_end_has_no_eos() -> None:
    assert channel(5, (1, 5, "one")) == ([PAD, BOS, *ids("one"), PAD, PAD], 0)


def test_no_turns_is_all_pad() -> None:
    assert channel(3) == ([PAD] * 3, 0)


def test_defect_06_text_longer_than_its_turn_is_cut_before_eos() -> None:
    assert channel(8, (1, 4, "a b c d e")) == ([PAD, BOS, *ids("a b"), EOS, PAD, PAD, PAD], 3)


def test_text_longer_than_the_dialogue_is_cut_at_its_end() -> None:
    assert channel(4, (1, 9, "a b c d e")) == ([PAD, BOS, *ids("a b")], 3)


def test_next_turn_ends_the_turn_it_interrupts() -> None:
    tokens = [BOS, *ids("a b"), BOS, *ids("x"), PAD, EOS, PAD]
    assert channel(8, (0, 5, "a b c d"), (3, 6, "x")) == (tokens, 2)
    assert channel(8, (3, 6, "x"), (0, 5, "a b c d")) == (tokens, 2), "the order of supervisions changed the grid"


def test_spread_tokens_stand_where_they_are_said() -> None:
    a, b, c = ids("a b c")
    assert channel(10, (0, 7, "a b c"), spread=True) == ([BOS, a, PAD, b, PAD, c, PAD, EOS, PAD, PAD], 0)
    assert channel(10, (1, 9, "a b c"), spread=True) == ([PAD, BOS, a, PAD, b, PAD, c, PAD, PAD, EOS], 0)


def test_spread_text_that_fills_its_turn_is_as_it_would_be() -> None:
    for turn in ((1, 4, "a b"), (1, 4, "a b c d e"), (2, 3, "a"), (2, 2, "a"), (1, 5, "")):
        assert channel(8, turn, spread=True) == channel(8, turn)


def test_spread_text_is_cut_where_the_next_turn_interrupts_it() -> None:
    a, b, x = ids("a b x")
    tokens = [BOS, a, PAD, b, BOS, x, PAD, EOS]
    assert channel(8, (0, 7, "a b c"), (4, 7, "x"), spread=True) == (tokens, 1)


# text of a span of words, the frames of the dialogue from which and to which it lasts
Span = tuple[str, int, int]


def timed(
    num_frames: int, *turns: tuple[int, int, str, list[Span]], tokenizer: Any = TOKENIZER, lead: int = 0
) -> TextChannel:
    """Spread turns that are given in frames: start, end, text, spans of words."""
    made = [
        Turn(
            "user", start * FRAME_S, (end - start) * FRAME_S, text,
            words=tuple(TimedWords(said, (at - start) * FRAME_S, (to - at) * FRAME_S) for said, at, to in spans),
        )
        for start, end, text, spans in turns
    ]  # fmt: skip
    return build_text_channel(made, FrameGrid(num_frames, FRAME_S, RATE_HZ), tokenizer, spread=True, lead=lead)


def placed(num_frames: int, **frames: int) -> list[int]:
    """The channel in which each word, BOS and EOS stand at the given frames."""
    tokens = [PAD] * num_frames
    for name, frame in frames.items():
        tokens[frame] = {"bos": BOS, "eos": EOS}.get(name) or ids(name)[0]
    return tokens


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([("a b", 1, 5), ("c d", 13, 17)], {"a": 2, "b": 3, "c": 13, "d": 15}),  # a pause between them; BOS is at 1
        ([("a", 3, 4), ("b", 3, 4), ("c d", 3, 4)], {"a": 3, "b": 4, "c": 5, "d": 6}),  # one a frame, in their order
        ([("a", 5, 7), ("b c d", 1, 5)], {"a": 5, "b": 6, "c": 7, "d": 8}),  # times that go back
        ([("a", 0, 2), ("b", 2, 17), ("c d", 18, 30)], {"a": 2, "b": 3, "c": 15, "d": 16}),  # before and behind it
    ],
)
def test_words_with_times_stand_where_they_are_said(spans: list[Span], expected: dict[str, int]) -> None:
    tokens_T, *counts = timed(20, (1, 17, "a b c d", spans))
    assert tokens_T.tolist() == placed(20, bos=1, eos=17, **expected)
    assert counts == [0, 0]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([("a b", 5, 9), ("c d", 13, 17)], {"a": 2, "b": 3, "c": 10, "d": 11}),  # 3 frames before they are said
        ([("a b", 1, 5), ("c d", 6, 17)], {"a": 2, "b": 3, "c": 4, "d": 5}),  # not before the turn, nor one another
        ([("a", 2, 3), ("b c d", 4, 17)], {"a": 2, "b": 3, "c": 4, "d": 5}),
    ],
)
def test_text_with_a_lead_stands_before_what_is_said(spans: list[Span], expected: dict[str, int]) -> None:
    tokens_T, *counts = timed(20, (1, 17, "a b c d", spans), lead=3)
    assert tokens_T.tolist() == placed(20, bos=1, eos=17, **expected)
    assert counts == [0, 0]


def test_without_times_a_lead_changes_nothing() -> None:
    plain, led = (timed(20, (1, 17, "a b c d", []), lead=lead) for lead in (0, 3))
    assert torch.equal(plain.tokens_T, led.tokens_T)


def test_words_said_behind_an_interruption_are_cut() -> None:
    tokens_T, *counts = timed(20, (1, 17, "a b c d", [("a b", 1, 5), ("c d", 13, 17)]), (14, 18, "x", []))
    assert tokens_T.tolist() == placed(20, bos=1, a=2, b=3, c=13)[:14] + placed(20, bos=14, x=15, eos=18)[14:]
    assert counts == [1, 0]


def test_words_that_are_not_the_texts_spread_it_evenly_and_are_counted() -> None:
    without = timed(20, (1, 17, "a b c d", []))
    for spans in ([("a b", 1, 5), ("c", 13, 17)], [("a b c d e", 13, 17)]):
        tokens_T, *counts = timed(20, (1, 17, "a b c d", spans), (18, 19, "", []))
        assert tokens_T[:18].tolist() == without.tokens_T[:18].tolist()
        assert counts == [0, 1]


@given(
    words=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(-3, 25), st.integers(0, 9)), max_size=9),
    start=st.integers(0, 8), length=st.integers(0, 14),
)  # fmt: skip
def test_times_move_tokens_and_lose_none(words: list[tuple[str, int, int]], start: int, length: int) -> None:
    text = " ".join(word for word, _, _ in words)
    tokens_T, *counts = timed(24, (start, start + length, text, [(word, at, at + size) for word, at, size in words]))
    plain, num_dropped = channel(24, (start, start + length, text))
    assert [token for token in tokens_T.tolist() if token != PAD] == [token for token in plain if token != PAD]
    assert counts == [num_dropped, 0]


class MergingTokenizer(WordTokenizer):
    """A whole text is two tokens, fewer than its beginning."""

    def text_to_ids(self, text: str) -> list[int]:
        return [7, 8] if text == "a b c d" else super().text_to_ids(text)


def test_a_tokenizer_may_merge_words() -> None:
    tokens_T, *counts = timed(20, (1, 17, "a b c d", [("a b c", 5, 9), ("d", 13, 17)]), tokenizer=MergingTokenizer())
    assert tokens_T.tolist() == [PAD, BOS, PAD, PAD, PAD, 7, PAD, 8, *[PAD] * 9, EOS, PAD, PAD]
    assert counts == [0, 0]


def test_eos_gives_way_to_the_bos_of_the_next_turn() -> None:
    assert channel(6, (0, 3, "a"), (3, 5, "x")) == ([BOS, *ids("a"), PAD, BOS, *ids("x"), EOS], 0)


@pytest.mark.parametrize("turn", [(2, 2, "a b"), (6, 9, "a b")], ids=["no frame", "behind the end"])
def test_turn_of_no_frame_is_left_out_and_counted(turn: tuple[int, int, str]) -> None:
    assert channel(6, turn) == ([PAD] * 6, 2)


@st.composite
def well_formed(draw: st.DrawFn) -> MonoCut:
    """A cut with turns of both sides: those of a side don't touch, and each has the frames that its text needs."""
    rate_hz = draw(st.sampled_from([16000, 22050, 44100]))
    turns: list[TurnSpec] = []
    num_frames = draw(st.integers(4, 120))
    for speaker in ("user", "agent"):
        frame = draw(st.integers(0, 10))
        while frame + 3 < num_frames and draw(st.booleans()):
            num_words = draw(st.integers(0, min(12, num_frames - frame - 2)))
            length = num_words + 1 + draw(st.integers(0, 10))
            # off the grid by less than half a frame: both round to the same frames
            start_s = max(0.0, (frame + draw(st.floats(-0.4, 0.4))) * FRAME_S)
            end_s = (frame + length + draw(st.floats(-0.4, 0.4))) * FRAME_S
            text = " ".join(draw(st.lists(st.sampled_from("abcdefgh"), min_size=num_words, max_size=num_words)))
            turns.append((speaker, start_s, end_s - start_s, text))
            frame += length + 1 + draw(st.integers(0, 10))
    cut = dialogue("cut", num_frames * FRAME_S, turns, source_rate_hz=rate_hz)
    cut.supervisions = draw(st.permutations(cut.supervisions))
    return cut


class NemoTokenizer:
    """The same tokenizer with NeMo's names."""

    bos, eos, pad, unk_id = BOS, EOS, PAD, None

    def text_to_ids(self, text: str) -> list[int]:
        return ids(text)


@pytest.fixture(scope="module")
def nemo() -> Any:
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    from nemo.collections.speechlm2.data import s2s_dataset

    return s2s_dataset


@settings(max_examples=150)
@given(cut=well_formed())
def test_equals_nemo_on_well_formed_turns(nemo: Any, cut: MonoCut) -> None:
    for role in ("user", "agent"):
        expected = nemo.build_token_channel(cut, NemoTokenizer(), FRAME_S, {role}, pad_id=PAD)
        turns = [Turn(role, s.start, s.duration, s.text) for s in cut.supervisions if s.speaker == role]
        grid = FrameGrid.of(cut.duration, FRAME_S, cut.sampling_rate)
        made = build_text_channel(turns, grid, TOKENIZER)
        assert made.tokens_T.tolist() == expected.tolist()
        assert made.num_dropped_tokens == 0


def test_batch_equals_nemos(nemo: Any) -> None:
    cuts = dialogues("d", 4)
    cuts[1].supervisions[1].text = "<|0|> it  is<|3|> <|4|> four <|7|>"
    theirs = nemo.DuplexS2SDataset(NemoTokenizer(), FRAME_S, 16000, 22050, ["user"], ["agent"])[CutSet(cuts)]
    ours = dict(DuplexDataset(TOKENIZER)[cuts])
    assert theirs.keys() <= ours.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(ours[key], value, check_dtype=False, rtol=0, atol=0)
        else:
            assert ours[key] == value


def test_defect_06_nemo_runs_past_eos(nemo: Any) -> None:
    """The reference has the defect: where text doesn't fit, being equal to it would be wrong."""
    cut = dialogue("cut", 0.8, [("agent", 0.0, 0.24, "a b c d e")])
    theirs = nemo.build_token_channel(cut, NemoTokenizer(), FRAME_S, {"agent"}, pad_id=PAD).tolist()
    assert theirs.index(EOS) < max(i for i, token in enumerate(theirs) if token not in (PAD, BOS, EOS))
    ours = DuplexDataset(TOKENIZER)[[cut]]
    assert ours["target_tokens"][0].tolist() == [BOS, *ids("a b"), EOS, *[PAD] * 6]
    assert ours["num_dropped_tokens"].tolist() == [3]


def test_cut_text_is_told_at_1_10_100_dialogues(caplog: pytest.LogCaptureFixture) -> None:
    log = TextFitLog(TOO_LONG)
    for number in range(250):
        log.add(f"cut-{number}", 2)
        log.add("fine", 0)
    assert [record.getMessage() for record in caplog.records] == [
        "text longer than its turn: 2 tokens cut in 1 dialogues so far, the last is cut cut-0",
        "text longer than its turn: 20 tokens cut in 10 dialogues so far, the last is cut cut-9",
        "text longer than its turn: 200 tokens cut in 100 dialogues so far, the last is cut cut-99",
    ]


@pytest.mark.parametrize(
    "tokenizer",
    [WordTokenizer(pad_id=2), WordTokenizer(bos_id=2), WordTokenizer(bos_id=None)],  # type: ignore[arg-type]
)
def test_defect_07_special_ids_must_differ(tokenizer: WordTokenizer) -> None:
    with pytest.raises(DataError, match=r"three different ids, but are .*'eos_id': 2"):
        DuplexDataset(tokenizer)


def test_turns_without_text_or_a_role_are_taken_as_they_are() -> None:
    cut = dialogue("cut", 0.8)
    cut.supervisions = [
        SupervisionSegment("s1", "cut", 0.0, 0.24, speaker="agent"),
        SupervisionSegment("s2", "cut", 0.4, 0.24, text="hum", speaker="dog"),
    ]
    batch = DuplexDataset(TOKENIZER)[[cut]]
    assert batch["target_tokens"][0].tolist() == [BOS, PAD, PAD, EOS, *[PAD] * 6]
    assert batch["turns"] == [[Turn("agent", 0.0, 0.24, "")]]
