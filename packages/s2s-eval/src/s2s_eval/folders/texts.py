"""Texts and turns in files: ``ID.txt``, ``ID.json`` and the ``dialogues.jsonl`` that validation writes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from s2s_eval.samples import DIALOGUES_FILE, SCORES_FILE


class Turn(NamedTuple):
    """A turn of a dialogue. Times are in seconds."""

    role: str  # "user" or "agent"
    start_s: float
    duration_s: float
    text: str
    value: str | None = None  # what the agent's answer must contain; None: not known


def read_text(path: Path) -> str:
    """Return the file's text. Raises ValueError if it isn't UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't UTF-8 text: {error.reason} at byte {error.start}") from error


def read_turns(path: Path) -> list[Turn]:
    """Return the turns of ``{"turns": [...]}`` in order of start. Raises ValueError naming the file and the turn."""
    data = _parse(read_text(path), path, 1)
    return turns_of(data, "turns", str(path))


def read_records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return each line's place ("file, line 3") and object. Raises ValueError for a line that isn't an object."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(f"{path}, line {number}", _parse(line, path, number)) for number, line in lines if line.strip()]


def records_path(place: Path) -> Path | None:
    """Return the ``dialogues.jsonl`` that ``place`` is or holds, if any. Raises ValueError if it holds several sets."""
    if (place / SCORES_FILE).is_file():
        inner = sorted(path.parent.name for path in place.glob(f"*/{DIALOGUES_FILE}"))
        raise ValueError(f"{place} is a whole validation: give one data set's folder in it, {' or '.join(inner)}")
    if place.is_dir():
        place = place / DIALOGUES_FILE
    return place if place.is_file() and place.suffix == ".jsonl" else None


def string_of(record: Mapping[str, Any], key: str, place: str) -> str:
    """Return ``record[key]``. Raises ValueError, saying where, if it isn't a string."""
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{place}: {key} is {value!r}: a text was expected")
    return value


def turns_of(data: Mapping[str, Any], key: str, place: str) -> list[Turn]:
    """Return ``data[key]`` as turns in order of start. Raises ValueError for what isn't one, saying where."""
    entries = data.get(key)
    if not isinstance(entries, list):
        raise ValueError(f'{place}: no list of {key}: write {{"{key}": [{{"role": "agent", "start": 0.5, "end": 2, …')
    turns = [_turn(entry, f"{place}, {key}[{i}]") for i, entry in enumerate(entries)]
    return sorted(turns, key=lambda turn: turn.start_s)


def _turn(entry: object, place: str) -> Turn:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is {entry!r}: a turn is an object with role, start, duration or end, and text")
    role = entry.get("role")
    if role not in ("user", "agent"):
        raise ValueError(f"{place}: role is {role!r}: give 'user' or 'agent'")
    text = entry.get("text", "" if role == "user" else None)
    if not isinstance(text, str):
        raise ValueError(f"{place}: text is {text!r}: give what the agent should have said")
    start_s, duration_s, end_s = (_seconds(entry, key, place) for key in ("start", "duration", "end"))
    if start_s is None or (duration_s is None and end_s is None):
        raise ValueError(f"{place}: give start, and duration or end, in seconds")
    if duration_s is None:
        assert end_s is not None
        duration_s = end_s - start_s
    if duration_s < 0:
        raise ValueError(f"{place}: it ends before it starts at {start_s:g} s")
    return Turn(role, start_s, duration_s, text, _value(entry, place))


def _value(entry: dict[str, Any], place: str) -> str | None:
    """Return what the answer must contain, None where the turn doesn't tell."""
    value = entry.get("value")
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise ValueError(f"{place}: value is {value!r}: give the text that the answer must contain, or leave it out")


def _seconds(entry: dict[str, Any], key: str, place: str) -> float | None:
    """Return ``entry[key]`` or, as our own files have it, ``entry[key + "_s"]``."""
    value = entry.get(key, entry.get(f"{key}_s"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{place}: {key} is {value!r}: give seconds from the dialogue's start")
    return float(value)


def _parse(text: str, path: Path, first_line: int) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise ValueError(f"{path}, line {line}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}, line {first_line}: {type(data).__name__} where an object was expected")
    return data
