"""From transcripts to turns: words with times (moshi-finetune's layout), or turns as they are."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from s2s_data.batch import TimedWords, Turn
from s2s_data.importing.options import ImportOptions
from s2s_data.importing.recorded import Channel, DialogueError
from s2s_data.roles import AGENT, USER, clean_text

# Aligners overlap neighbouring words by some ten milliseconds; more is a fault.
MAX_OVERLAP_S = 0.1
# How far a time may lie behind the audio's end: encoders and aligners round to frames of their own.
MAX_BEYOND_S = 0.16

LOUD_RMS = 10 ** (-45 / 20)  # of full scale 1.0
_LOUDNESS_FRAME_S = 0.08
_MIN_LOUD_S = 0.24

# Between words that are closer than a frame no turn ends, whoever starts to speak there.
_MIN_PAUSE_S = 0.08


class _Word(NamedTuple):
    role: str
    start_s: float
    end_s: float
    text: str


def parse_transcript(data: Any, options: ImportOptions, where: str) -> list[Turn]:
    """Return the turns of a transcript, by their start.

    Parameters
    ----------
    data
        ``{"alignments": [[word, [start, end], speaker], ...]}`` or ``{"turns": [{"speaker", "start", "end" or
        "duration", "text"}, ...]}``, in seconds.
    options
        Who is who, and how far apart the words of one turn may be.
    where
        The file, for messages.

    Raises
    ------
    DialogueError
        For another layout, an unknown speaker, or times that can't be.

    """
    if isinstance(data, Mapping) and "alignments" in data:
        words = [
            _word(entry, options, f"{where}: word {i}") for i, entry in enumerate(_entries(data, "alignments", where))
        ]
        turns = [turn for role in (USER, AGENT) for turn in _turns_of(words, role, options.max_gap_s, where)]
    elif isinstance(data, Mapping) and "turns" in data:
        turns = [
            parse_turn(entry, options, f"{where}: turn {i}") for i, entry in enumerate(_entries(data, "turns", where))
        ]
    else:
        has = f"has {', '.join(map(str, data))}" if isinstance(data, Mapping) else f"is a {type(data).__name__}"
        raise DialogueError("unknown layout", f"{where}: must have 'alignments' or 'turns', but {has}")
    return sorted(turns, key=lambda turn: turn.start_s)


def parse_turn(entry: Any, options: ImportOptions, where: str) -> Turn:
    """Return one turn of ``{"speaker", "start", "end" or "duration", "text"}``; raises :class:`DialogueError`."""
    if not isinstance(entry, Mapping):
        raise DialogueError("unknown layout", f"{where} must be a mapping, but is {entry!r}")
    for key in ("speaker", "start", "text"):
        if key not in entry:
            raise DialogueError("incomplete turn", f"{where} has no {key!r}: it has {', '.join(map(str, entry))}")
    start_s = _seconds(entry["start"], f"{where}: start")
    if "end" in entry:
        duration_s = _seconds(entry["end"], f"{where}: end") - start_s
    elif "duration" in entry:
        duration_s = _seconds(entry["duration"], f"{where}: duration")
    else:
        raise DialogueError("incomplete turn", f"{where} has neither 'end' nor 'duration'")
    return Turn(_role(entry["speaker"], options, where), start_s, duration_s, clean_text(str(entry["text"] or "")))


def fit_turns(turns: Iterable[Turn], duration_s: float, where: str) -> tuple[Turn, ...]:
    """Check turns against the audio, and cut off what overlaps or lies beyond its end by a little.

    Raises :class:`DialogueError` where it is more than ``MAX_OVERLAP_S`` or ``MAX_BEYOND_S``, and for turns that
    last no time.
    """
    fitted: list[Turn] = []
    for role in (USER, AGENT):
        side = sorted((turn for turn in turns if turn.role == role), key=lambda turn: turn.start_s)
        for turn, following in zip(side, [*side, None][1:], strict=True):
            if turn.end_s - duration_s > MAX_BEYOND_S or turn.start_s < 0:
                raise DialogueError(
                    "outside the audio",
                    f"{where}: {_named(turn)} lies outside the audio's {duration_s:.2f} s: is it another file's?",
                )
            if following is not None and turn.end_s - following.start_s > MAX_OVERLAP_S:
                raise DialogueError(
                    "overlapping turns",
                    f"{where}: {_named(turn)} overlaps the next one of the same side, at {following.start_s:.2f} s: "
                    "correct the times, or join the two",
                )
            end_s = min(turn.end_s, duration_s, following.start_s if following else duration_s)
            if end_s <= turn.start_s:
                raise DialogueError("empty turn", f"{where}: {_named(turn)} lasts no time: correct its times")
            fitted.append(turn._replace(duration_s=end_s - turn.start_s))
    return tuple(sorted(fitted, key=lambda turn: turn.start_s))


def loud_turns(channel: Channel, role: str, max_gap_s: float, others: Iterable[Turn] = ()) -> list[Turn]:
    """Return the parts of a channel above -45 dB of full scale as turns without text.

    They last 0.24 s at least; those that are no more than ``max_gap_s`` apart are one, unless one of the turns of
    ``others`` starts between them.
    """
    size = round(_LOUDNESS_FRAME_S * channel.rate_hz)
    whole = len(channel.samples_S) // size * size
    rms_T = np.sqrt(np.square(channel.samples_S[:whole].reshape(-1, size)).mean(axis=1))
    words = [
        _Word(role, i * size / channel.rate_hz, (i + 1) * size / channel.rate_hz, "")
        for i in np.flatnonzero(rms_T > LOUD_RMS).tolist()
    ]
    starts_s = sorted(turn.start_s for turn in others)
    return [turn for turn in _group(words, starts_s, max_gap_s) if turn.duration_s >= _MIN_LOUD_S]


def _entries(data: Mapping[str, Any], key: str, where: str) -> Sequence[Any]:
    entries = data[key]
    if not isinstance(entries, list):
        raise DialogueError("unknown layout", f"{where}: {key!r} must be a list, but is {entries!r}")
    return entries


def _word(entry: Any, options: ImportOptions, where: str) -> _Word:
    try:
        text, (start, end), speaker = entry
    except (TypeError, ValueError) as error:
        raise DialogueError(
            "unknown layout", f"{where} must be [word, [start, end], speaker], but is {entry!r}"
        ) from error
    start_s, end_s = _seconds(start, f"{where}: start"), _seconds(end, f"{where}: end")
    if end_s < start_s:
        raise DialogueError("end before start", f"{where}, {text!r}, ends at {end_s:.2f} s before its start")
    return _Word(_role(speaker, options, where), start_s, end_s, str(text).strip())


def _turns_of(words: Sequence[_Word], role: str, max_gap_s: float, where: str) -> list[Turn]:
    side = sorted((word for word in words if word.role == role), key=lambda word: word.start_s)
    for word, following in pairwise(side):
        if word.end_s - following.start_s > MAX_OVERLAP_S:
            raise DialogueError(
                "overlapping words",
                f"{where}: the {role}'s words {word.text!r} at {word.start_s:.2f}-{word.end_s:.2f} s and "
                f"{following.text!r} at {following.start_s:.2f} s overlap: align the file anew",
            )
    return _group(side, sorted(word.start_s for word in words if word.role != role), max_gap_s)


def _group(side: Iterable[_Word], other_starts_s: Sequence[float], max_gap_s: float) -> list[Turn]:
    """Join one side's words, in their order, to turns; a turn ends where the other side starts in a pause."""
    groups: list[list[_Word]] = []
    for word in side:
        if groups and _goes_on(groups[-1][-1].end_s, word.start_s, other_starts_s, max_gap_s):
            groups[-1].append(word)
        else:
            groups.append([word])
    return [_joined(group) for group in groups]


def _goes_on(end_s: float, start_s: float, other_starts_s: Sequence[float], max_gap_s: float) -> bool:
    if start_s - end_s > max_gap_s + 1e-6:  # the bounds of touching frames differ by rounding
        return False
    answered = bisect_left(other_starts_s, end_s) < bisect_left(other_starts_s, start_s)
    return not answered or start_s - end_s < _MIN_PAUSE_S


def _joined(words: Sequence[_Word]) -> Turn:
    start_s = words[0].start_s
    text = clean_text(" ".join(word.text for word in words))
    timed = (TimedWords(clean_text(word.text), word.start_s - start_s, word.end_s - word.start_s) for word in words)
    duration_s = max(word.end_s for word in words) - start_s
    return Turn(words[0].role, start_s, duration_s, text, words=tuple(word for word in timed if word.text))


def _role(speaker: Any, options: ImportOptions, where: str) -> str:
    if speaker in options.agent_speakers:
        return AGENT
    if speaker in options.user_speakers:
        return USER
    raise DialogueError(
        "unknown speaker",
        f"{where} has the speaker {speaker!r}, who is neither of the agent's {list(options.agent_speakers)} nor of "
        f"the user's {list(options.user_speakers)}: name it with --agent-speakers or --user-speakers, which replace "
        "these lists",
    )


def _seconds(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise DialogueError("time that is no number", f"{where} must be a number of seconds, but is {value!r}")
    return float(value)


def _named(turn: Turn) -> str:
    return f"the {turn.role}'s turn at {turn.start_s:.2f}-{turn.end_s:.2f} s"
