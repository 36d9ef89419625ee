"""What can be wrong with a cut's turns; needs no audio."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from lhotse.cut import Cut

from s2s_data.batch import Turn
from s2s_data.roles import AGENT, USER, Roles
from s2s_data.text_channel import FrameGrid, build_text_channel
from s2s_data.words import WordTokenizer

Found = tuple[str, str]  # kind, what


def turn_problems(cut: Cut, turns: Sequence[Turn], roles: Roles, grid: FrameGrid) -> Iterator[Found]:
    """Yield the kind and the description of what is wrong with the turns of ``cut``."""
    for speaker in sorted({str(supervision.speaker) for supervision in cut.supervisions}):
        if speaker not in roles.input_roles | roles.output_roles:
            yield "unknown-speaker", f"speaker {speaker!r} is in neither role: its turns are left out"
    if not any(turn.role == AGENT for turn in turns):
        yield "no-agent-turn", "the agent has no turn"
    for turn in turns:
        yield from _one_turn(turn, cut.duration, grid)
    for role in (USER, AGENT):
        yield from _overlaps([turn for turn in turns if turn.role == role], grid)


def named(turn: Turn) -> str:
    """Name a turn, for messages."""
    return f"{turn.role} turn at {turn.start_s:.2f}-{turn.end_s:.2f} s"


def _one_turn(turn: Turn, duration_s: float, grid: FrameGrid) -> Iterator[Found]:
    if turn.start_s < 0 or turn.end_s > duration_s + grid.frame_length_s:
        yield "turn-outside", f"{named(turn)} lies outside the cut's {duration_s:.2f} s"
    if not turn.text:
        yield "empty-text", f"{named(turn)} has no text"
    num_dropped = build_text_channel([turn], grid, WordTokenizer()).num_dropped_tokens
    if num_dropped:
        num_words = len(turn.text.split())
        num_frames = grid.frame_at(turn.end_s) - grid.frame_at(turn.start_s)
        what = f"{named(turn)} has {num_words} words for {num_frames} frames: {num_dropped} of them don't fit"
        yield "text-too-long", what


def _overlaps(turns: Sequence[Turn], grid: FrameGrid) -> Iterator[Found]:
    for turn, following in pairwise(turns):
        if following.start_s < turn.end_s - grid.frame_length_s:
            yield "turns-overlap", f"{named(turn)} overlaps the next of its side, at {following.start_s:.2f} s"
