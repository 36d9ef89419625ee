"""Importing jsonl manifests: a dialogue a line, or a question and its answer a line."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2s_data.batch import Turn
from s2s_data.errors import DataError, unknown_name
from s2s_data.importing.audio import fit, read_mono, read_stereo
from s2s_data.importing.jsonl import read_rows
from s2s_data.importing.options import ImportOptions
from s2s_data.importing.recorded import Channel, DialogueError, Item, RecordedDialogue
from s2s_data.importing.shards import write_dialogues
from s2s_data.importing.stereo import CHANNELS
from s2s_data.importing.summary import ImportSummary
from s2s_data.importing.turns import fit_turns, parse_turn
from s2s_data.roles import AGENT, USER

# What a row's values are called, by what they are; NeMo's names where it has one. Dots lead into nested values.
FIELDS = {
    "id": "id",
    # a dialogue: a file for each side (or ``audio`` with two channels) and its turns
    "user_audio": "user_audio",
    "agent_audio": "agent_audio",
    "turns": "turns",
    # a question and its answer, each a file or a part of one
    "audio": "audio_filepath",
    "offset": "offset",
    "duration": "duration",
    "text": "text",
    "answer_audio": "target_audio_filepath",
    "answer_offset": "target_offset",
    "answer_duration": "target_duration",
    "answer": "answer",
}

# Two files of one dialogue may differ by this much, seconds; the loader allows it too.
MAX_DIFFERENCE_S = 0.16

_FRAME_S = 0.08


@dataclass(frozen=True)
class Spacing:
    """The silence around a question and its answer, seconds; each part starts on a frame of 80 ms."""

    lead_in_s: float = 0.4  # before the question
    answer_gap_s: float = 0.32  # between the question and the answer
    tail_s: float = 0.48  # after the answer

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for a negative one."""
        for name in ("lead_in_s", "answer_gap_s", "tail_s"):
            if getattr(self, name) < 0:
                raise DataError(f"{name} is {getattr(self, name)}, but must be at least 0")


def import_manifest(
    manifest: Path | str,
    out_dir: Path | str,
    options: ImportOptions | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    spacing: Spacing | None = None,
    agent_channel: str = "left",
    start: Callable[[int], None] = lambda num_items: None,
    progress: Callable[[int], None] = lambda num_items: None,
    say: Callable[[str], None] = lambda line: None,
) -> ImportSummary:
    """Write the dialogues of a jsonl manifest as a Shar.

    A row with turns is a dialogue: a one-channel file for each side, or one file with two channels. A row
    without turns is a question (``audio``, ``text``) and its answer (``answer_audio``, ``answer``), which are
    laid one after the other.

    Parameters
    ----------
    manifest
        The jsonl file, gzipped or not; relative paths in it are relative to it.
    out_dir
        The Shar. A run that was stopped goes on there.
    options
        How to read and write.
    fields
        Names of the rows' values that differ from :data:`FIELDS`.
    spacing
        The silence around a question and its answer.
    agent_channel
        "left" or "right", for files with two channels.
    start, progress, say
        As in :func:`~s2s_data.importing.stereo.import_stereo`.

    Raises
    ------
    DataError
        If the manifest can't be read, no row has one of the ``fields``, or as
        :func:`~s2s_data.importing.shards.write_dialogues` does.

    """
    if agent_channel not in CHANNELS:
        raise DataError(f"agent_channel is {agent_channel!r}, but must be left or right")
    for name in fields or {}:
        if name not in FIELDS:
            raise DataError(f"fields: {unknown_name(name, FIELDS)}")
    path, options, spacing = Path(manifest), options or ImportOptions(), spacing or Spacing()
    names = {**FIELDS, **(fields or {})}
    items = []
    for number, (where, row) in enumerate(read_rows(path)):
        dialogue_id = _get(row, names["id"])
        default_id = f"{path.name.partition('.')[0]}-{number:06d}"
        items.append(Item(default_id if dialogue_id is None else str(dialogue_id), where, row))
    _check_fields(items, fields or {}, path)
    start(len(items))
    reader = ManifestReader(options, names, spacing, CHANNELS.index(agent_channel), str(path.parent))
    plan = {
        "command": "import-manifest",
        "source": str(path.absolute()),
        "fields": names,
        "spacing": [spacing.lead_in_s, spacing.answer_gap_s, spacing.tail_s],
        "agent_channel": agent_channel,
    }
    return write_dialogues(items, reader, Path(out_dir), options, plan=plan, progress=progress, say=say)


@dataclass(frozen=True)
class ManifestReader:
    """Reads the audio that a row names."""

    options: ImportOptions
    fields: Mapping[str, str]
    spacing: Spacing
    agent_channel: int  # of two-channel files; 0 is left
    root: str

    def __call__(self, item: Item) -> RecordedDialogue:
        """Read one dialogue; raises :class:`DialogueError`."""
        if self._value(item, "turns") is None:
            return self._single_turn(item)
        return self._dialogue(item)

    def _dialogue(self, item: Item) -> RecordedDialogue:
        user, agent = self._channels(item)
        entries = self._value(item, "turns")
        if not isinstance(entries, list):
            raise DialogueError("wrong row", f"{item.name}: {self.fields['turns']} must be a list, but is {entries!r}")
        turns = [parse_turn(entry, self.options, f"{item.name}: turn {i}") for i, entry in enumerate(entries)]
        return RecordedDialogue(user, agent, fit_turns(turns, user.duration_s, item.name))

    def _channels(self, item: Item) -> tuple[Channel, Channel]:
        if self._value(item, "user_audio") is None and self._value(item, "audio") is not None:
            return read_stereo(self._path(item, "audio"), self.agent_channel)
        user = read_mono(self._path(item, "user_audio"))
        agent = read_mono(self._path(item, "agent_audio"))
        if abs(user.duration_s - agent.duration_s) > MAX_DIFFERENCE_S and not self.options.pad_channels:
            raise DialogueError(
                "unequal channels",
                f"{item.name}: the user's audio lasts {user.duration_s:.2f} s, the agent's {agent.duration_s:.2f} s: "
                "both must start together and last equally long: correct them, or pad the shorter (--pad-channels)",
            )
        return _padded(user, agent)

    def _single_turn(self, item: Item) -> RecordedDialogue:
        question = self._part(item, "audio", "offset", "duration")
        answer = self._part(item, "answer_audio", "answer_offset", "answer_duration")
        question_at = _on_frame(self.spacing.lead_in_s)
        answer_at = _on_frame(question_at + question.duration_s + self.spacing.answer_gap_s)
        duration_s = _on_frame(answer_at + answer.duration_s + self.spacing.tail_s)
        turns = (
            Turn(USER, question_at, question.duration_s, self._text(item, "text")),
            Turn(AGENT, answer_at, answer.duration_s, self._text(item, "answer")),
        )
        return RecordedDialogue(
            _placed(question, question_at, duration_s),
            _placed(answer, answer_at, duration_s),
            fit_turns(turns, duration_s, item.name),
        )

    def _part(self, item: Item, audio: str, offset: str, duration: str) -> Channel:
        return read_mono(self._path(item, audio), self._seconds(item, offset) or 0.0, self._seconds(item, duration))

    def _value(self, item: Item, field: str) -> Any:
        return _get(item.row, self.fields[field])

    def _path(self, item: Item, field: str) -> Path:
        return Path(self.root) / self._text(item, field)

    def _text(self, item: Item, field: str) -> str:
        value = self._value(item, field)
        if not isinstance(value, str):
            has = "is missing" if value is None else f"is {value!r}"
            raise DialogueError(
                "wrong row",
                f"{item.name}: {self.fields[field]} must be a string, but {has}; the row has {', '.join(item.row)}: "
                f"add it, or name the right one (--field {field}=NAME)",
            )
        return value

    def _seconds(self, item: Item, field: str) -> float | None:
        value = self._value(item, field)
        if value is None or (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            return value
        raise DialogueError(
            "wrong row", f"{item.name}: {self.fields[field]} must be a number of seconds, but is {value!r}"
        )


def _check_fields(items: Sequence[Item], fields: Mapping[str, str], path: Path) -> None:
    for field, name in fields.items():
        if all(_get(item.row, name) is None for item in items):
            raise DataError(
                f"{path}: no row has {name!r} (--field {field}={name}); the first has {', '.join(items[0].row)}"
            )


def _get(row: Any, name: str) -> Any:
    """Return a value of a row, or None; ``a.b`` is ``row["a"]["b"]``."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    first, _, rest = name.partition(".")
    return _get(row[first], rest) if rest and isinstance(row, Mapping) and first in row else None


def _on_frame(time_s: float) -> float:
    """Return the next start of a frame; 1e-6 for times that are on one but for rounding."""
    return math.ceil(time_s / _FRAME_S - 1e-6) * _FRAME_S


def _placed(channel: Channel, start_s: float, duration_s: float) -> Channel:
    silence_S = np.zeros(round(start_s * channel.rate_hz), dtype=np.float32)
    samples_S = np.concatenate([silence_S, channel.samples_S])
    return Channel(fit(samples_S, round(duration_s * channel.rate_hz)), channel.rate_hz)


def _padded(user: Channel, agent: Channel) -> tuple[Channel, Channel]:
    duration_s = max(user.duration_s, agent.duration_s)
    return _placed(user, 0.0, duration_s), _placed(agent, 0.0, duration_s)
