"""On well-formed dialogues our batch is that of NeMo's `DuplexS2SDataset`: tokens, lengths, texts and audio."""

from typing import Any, NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, SupervisionSegment

from s2s_data import DuplexDataset
from tests.s2s_data.builders import TurnSpec, recording
from tests.s2s_data.nemo_reference import FRAME_S, SharedTokenizer, nemo_batch

TOKENIZER = SharedTokenizer()
INPUT_ROLES, OUTPUT_ROLES = ["user", "caller"], ["agent", "Assistant"]
MAX_FRAMES = 75
WORDS = ("what", "is", "two", "and", "four", "please")


class Spec(NamedTuple):
    """What a cut is made of: short to print when an example fails."""

    cut_id: str
    duration_s: float
    rates_hz: tuple[int, int]
    turns: list[TurnSpec]


def build(spec: Spec) -> MonoCut:
    user, agent = (
        recording(f"{spec.cut_id}-{rate_hz}", spec.duration_s, rate_hz, seed)
        for seed, rate_hz in enumerate(spec.rates_hz)
    )
    cut = MonoCut(
        id=spec.cut_id,
        start=0,
        duration=spec.duration_s,
        channel=0,
        recording=user,
        supervisions=[
            SupervisionSegment(f"{spec.cut_id}-{number}", "", start_s, duration_s, text=text, speaker=speaker)
            for number, (speaker, start_s, duration_s, text) in enumerate(spec.turns)
        ],
    )
    cut.target_audio = agent
    return cut


@st.composite
def turns_of_one_side(draw: st.DrawFn, speakers: list[str], duration_s: float) -> list[TurnSpec]:
    """Turns that don't overlap, each with a frame for BOS and for every word; their times are off the grid."""
    turns = []
    num_frames = round(duration_s / FRAME_S)
    frame = draw(st.integers(0, num_frames // 2))
    while frame + 2 <= num_frames and draw(st.booleans()):
        num_words = draw(st.integers(0, min(10, num_frames - frame - 1)))
        length = draw(st.integers(num_words + 1, num_words + 9))
        # less than half a frame off: the frames stay those that were drawn
        start_s = max(0.0, (frame + draw(st.floats(-0.4, 0.4))) * FRAME_S)
        end_s = (frame + length + draw(st.floats(-0.4, 0.4))) * FRAME_S
        if frame + length >= num_frames:
            end_s = duration_s  # the turn lasts until the dialogue ends
        words = draw(st.lists(st.sampled_from(WORDS), min_size=num_words, max_size=num_words))
        text = draw(st.sampled_from([" ", "  ", " <|3|> <|5|> "])).join(words)  # word times are taken out
        turns.append((draw(st.sampled_from(speakers)), start_s, end_s - start_s, text))
        frame += length + draw(st.integers(0, 8))
    return turns


@st.composite
def specs(draw: st.DrawFn, rates_hz: tuple[int, int]) -> Spec:
    """A dialogue whose sides speak when they like, over each other too; a bystander may have no role."""
    duration_s = round((draw(st.integers(4, MAX_FRAMES)) + draw(st.sampled_from([0.0, 0.3, -0.3]))) * FRAME_S, 3)
    sides = (INPUT_ROLES, OUTPUT_ROLES, ["bystander"])
    turns = [turn for speakers in sides for turn in draw(turns_of_one_side(speakers, duration_s))]
    return Spec(
        cut_id=f"cut{draw(st.integers(0, 999))}",
        duration_s=duration_s,
        rates_hz=rates_hz,
        turns=sorted(turns, key=lambda turn: turn[1]),
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Spec]:
    rates_hz = draw(st.sampled_from([(16000, 22050), (22050, 16000), (16000, 24000), (44100, 22050), (8000, 48000)]))
    return draw(st.lists(specs(rates_hz), min_size=1, max_size=3))


@settings(max_examples=200)
@given(batch=batches())
def test_batch_equals_nemos(batch: list[Spec]) -> None:
    cuts = [build(spec) for spec in batch]
    theirs = nemo_batch(cuts, TOKENIZER, input_roles=INPUT_ROLES, output_roles=OUTPUT_ROLES)
    dataset = DuplexDataset(TOKENIZER, input_roles=INPUT_ROLES, output_roles=OUTPUT_ROLES)
    ours: dict[str, Any] = dict(dataset[cuts])
    assert theirs.keys() <= ours.keys()
    for key, value in theirs.items():
        if isinstance(value, torch.Tensor):
            assert ours[key].shape == value.shape, key
            assert torch.equal(ours[key], value), key
        else:
            assert ours[key] == value, key
    assert ours["cut_ids"] == [spec.cut_id for spec in batch]
    assert not ours["num_dropped_tokens"].any()
