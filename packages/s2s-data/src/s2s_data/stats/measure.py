"""Measuring dialogues by their turns; no audio is read."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from lhotse.cut import Cut

from s2s_data.batch import Turn
from s2s_data.dataset import is_text_only
from s2s_data.roles import AGENT, USER, Roles

Span = tuple[float, float]  # start and end in seconds


@dataclass
class Side:
    """All turns of the user, or of the agent."""

    turn_s: list[float] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)  # a turn's
    speech_s: float = 0.0  # within the dialogues, what overlaps counted once
    response_s: list[float] = field(default_factory=list)  # silence from the other side's end to this one's start
    interrupted_s: list[float] = field(default_factory=list)  # how long the other speaks on when this side starts


@dataclass
class Measured:
    """Every single measurement; what :func:`s2s_data.stats.summarise` sums up, and plots show."""

    durations_s: list[float] = field(default_factory=list)
    user: Side = field(default_factory=Side)
    agent: Side = field(default_factory=Side)
    overlap_s: float = 0.0
    silence_s: float = 0.0
    num_text_only: int = 0  # dialogues of text alone, which aren't measured


def measure(cuts: Iterable[Cut], roles: Roles, count_tokens: Callable[[str], int]) -> Measured:
    """Measure dialogues; ``cuts`` needn't have their audio."""
    measured = Measured()
    for cut in cuts:
        if is_text_only(cut):
            measured.num_text_only += 1
            continue
        turns = roles.turns(cut)
        user = [turn for turn in turns if turn.role == USER]
        agent = [turn for turn in turns if turn.role == AGENT]
        measured.durations_s.append(float(cut.duration))
        _add_side(measured.user, user, agent, count_tokens)
        _add_side(measured.agent, agent, user, count_tokens)
        _add_speech(measured, user, agent, cut.duration)
    return measured


def _add_side(side: Side, turns: Sequence[Turn], others: Sequence[Turn], count_tokens: Callable[[str], int]) -> None:
    last_own_start_s = 0.0
    for turn in turns:
        side.turn_s.append(turn.duration_s)
        side.num_tokens.append(count_tokens(turn.text))
        ends_s = [other.end_s for other in others if other.start_s < turn.start_s]
        if ends_s and max(ends_s) > turn.start_s:
            side.interrupted_s.append(max(ends_s) - turn.start_s)
        elif ends_s and last_own_start_s < max(ends_s):  # else this side has answered already
            side.response_s.append(turn.start_s - max(ends_s))
        last_own_start_s = turn.start_s


def _add_speech(measured: Measured, user: Sequence[Turn], agent: Sequence[Turn], duration_s: float) -> None:
    user_s, agent_s = _length(_spans(user, duration_s)), _length(_spans(agent, duration_s))
    either_s = _length(_spans([*user, *agent], duration_s))
    measured.user.speech_s += user_s
    measured.agent.speech_s += agent_s
    measured.overlap_s += user_s + agent_s - either_s
    measured.silence_s += duration_s - either_s


def _spans(turns: Iterable[Turn], duration_s: float) -> list[Span]:
    return [(max(0.0, turn.start_s), min(duration_s, turn.end_s)) for turn in turns]


def _length(spans: Iterable[Span]) -> float:
    """Return the length of the union of ``spans``."""
    total_s = reached_s = 0.0
    for start_s, end_s in sorted(spans):
        total_s += max(0.0, end_s - max(start_s, reached_s))
        reached_s = max(reached_s, end_s)
    return total_s
