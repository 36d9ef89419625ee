"""Turn-taking in one dialogue: when the agent answers, when it talks over the user, and whether it lets itself be
interrupted.

The agent is judged by its audible segments (:mod:`s2s_eval.speech_segments`), the user and the reference agent by the
reference's turns, whatever their text. Turns without length count for nothing. All times are seconds from the
dialogue's start.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, NamedTuple

from s2s_eval.speech_segments import BLOCK_S, Span, bridged, overlap_s

MIN_SOUNDING_S = 0.2  # an agent that has spoken for less when the user begins isn't interrupted: both started at once
TOLERANCE_S = 1e-6  # for sums of decimal fractions


@dataclass(frozen=True)
class Response:
    """What follows a user turn that the reference agent answers."""

    user_end_s: float
    latency_s: float | None  # from there to the generated answer's start; below 0: an early start; None: missed
    reference_latency_s: float  # to the reference answer's start


@dataclass(frozen=True)
class BargeIn:
    """The user begins to speak while the generated agent does."""

    start_s: float  # when the user begins
    stop_s: float | None  # when the agent falls silent; None: it speaks to the audio's end
    kind: Literal["yield", "keep"]  # what the reference agent does
    success: bool  # whether the generated agent does likewise


class TurnTaking(NamedTuple):
    """The turn-taking of one dialogue."""

    responses: list[Response]
    barge_ins: list[BargeIn]
    user_speech_s: float  # how long the user speaks
    talk_over_s: float  # for how much of it the agent speaks too, in segments that it began within that user turn


class _UserTurn(NamedTuple):
    """A user's turns up to the agent's answer."""

    parts: list[Span]
    next_start_s: float | None  # of the next user turn
    answer_start_s: float | None  # of the reference agent

    @property
    def start_s(self) -> float:
        return self.parts[0][0]

    @property
    def end_s(self) -> float:
        return max(end for _, end in self.parts)


def turn_taking(
    user: Sequence[Span],
    agent: Sequence[Span],
    segments: Sequence[Span],
    audio_end_s: float,
    *,
    early_start_s: float,
    barge_in_stop_s: float,
) -> TurnTaking:
    """Judge one dialogue. ``user`` and ``agent`` are the reference's turns, ``segments`` the generated speech.

    **Responses.** User turns between which the reference agent doesn't answer are one. An answer is a turn (of the
    reference) or segment (generated) that starts no earlier than ``early_start_s`` before the user's end and before
    the next user turn; the first counts. A user turn without an answer in the reference asks for none. An agent that
    speaks already, and goes on, hasn't answered.

    **Talk-over.** The user's time during which a segment sounds that started within that user turn.

    **Barge-ins.** The user begins (after 0.5 s of silence or more) while a segment sounds that has done so for 0.2 s.
    If the reference agent goes on for ``barge_in_stop_s`` or more, as it does when the user only says "mhm", so must
    the generated one ("keep"). Otherwise, also if it doesn't speak, the generated one must be silent within that time,
    and for 0.5 s, or the segment wouldn't have ended ("yield"). Where the audio ends sooner, there's no telling.
    """
    user_spans, agent_spans = _with_length(user), _with_length(agent)
    user_turns = _user_turns(user_spans, agent_spans, early_start_s)
    speech = bridged(user_spans, gap_s=0.0)
    return TurnTaking(
        responses=[_response(turn, segments, early_start_s) for turn in user_turns if turn.answer_start_s is not None],
        barge_ins=_barge_ins(bridged(user_spans), bridged(agent_spans), segments, audio_end_s, barge_in_stop_s),
        user_speech_s=math.fsum(end - start for start, end in speech),
        talk_over_s=math.fsum(_talk_over_s(turn, segments) for turn in user_turns),
    )


def _with_length(spans: Sequence[Span]) -> list[Span]:
    return sorted((start, end) for start, end in spans if end > start)


def _user_turns(user: Sequence[Span], agent: Sequence[Span], early_start_s: float) -> list[_UserTurn]:
    starts = [start for start, _ in agent]
    turns: list[_UserTurn] = []
    parts: list[Span] = []
    for part, following in zip_longest(user, user[1:]):
        parts.append(part)
        end_s = max(end for _, end in parts)
        next_s = None if following is None else following[0]
        answer_s = _first_start(starts, end_s - early_start_s, next_s)
        if following is None or answer_s is not None:
            turns.append(_UserTurn(parts, next_s, answer_s))
            parts = []
    return turns


def _first_start(starts: Sequence[float], from_s: float, before_s: float | None) -> float | None:
    """Return the first of the starts in [from_s, before_s)."""
    answers = (s for s in starts if s >= from_s - TOLERANCE_S and (before_s is None or s < before_s - TOLERANCE_S))
    return min(answers, default=None)


def _response(turn: _UserTurn, segments: Sequence[Span], early_start_s: float) -> Response:
    assert turn.answer_start_s is not None
    starts = [start for start, _ in segments]
    start_s = _first_start(starts, turn.end_s - early_start_s, turn.next_start_s)
    latency_s = None if start_s is None else start_s - turn.end_s
    return Response(turn.end_s, latency_s, turn.answer_start_s - turn.end_s)


def _talk_over_s(turn: _UserTurn, segments: Sequence[Span]) -> float:
    begun = [span for span in segments if turn.start_s - TOLERANCE_S <= span[0] < turn.end_s - TOLERANCE_S]
    return overlap_s(bridged(turn.parts, gap_s=0.0), begun)


def _barge_ins(
    user: Sequence[Span],
    agent: Sequence[Span],
    segments: Sequence[Span],
    audio_end_s: float,
    barge_in_stop_s: float,
) -> list[BargeIn]:
    found = []
    for onset_s, _ in user:
        segment = next((s for s in segments if s[0] <= onset_s - MIN_SOUNDING_S + TOLERANCE_S and onset_s < s[1]), None)
        if segment is None:
            continue
        # a last partial block isn't measured
        stop_s = segment[1] if segment[1] < audio_end_s - BLOCK_S else None
        if stop_s is None and audio_end_s - onset_s < barge_in_stop_s:
            continue
        keeps = any(start <= onset_s and end - onset_s >= barge_in_stop_s - TOLERANCE_S for start, end in agent)
        stops = stop_s is not None and stop_s - onset_s <= barge_in_stop_s + TOLERANCE_S
        found.append(BargeIn(onset_s, stop_s, "keep" if keeps else "yield", stops != keeps))
    return found
