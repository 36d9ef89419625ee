"""Importing two-channel recordings with a transcript beside each."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from s2s_data.errors import DataError
from s2s_data.importing.audio import read_stereo
from s2s_data.importing.jsonl import read_rows
from s2s_data.importing.options import ImportOptions
from s2s_data.importing.recorded import DialogueError, Item, RecordedDialogue
from s2s_data.importing.shards import write_dialogues
from s2s_data.importing.summary import ImportSummary
from s2s_data.importing.turns import fit_turns, loud_turns, parse_transcript
from s2s_data.roles import USER

AUDIO_SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".wav")
CHANNELS = ("left", "right")

# A jsonl's duration and the file's may differ by this much, seconds: tools round to frames of their own.
MAX_DURATION_DIFFERENCE_S = 0.5


def import_stereo(
    source: Path | str,
    out_dir: Path | str,
    options: ImportOptions | None = None,
    *,
    agent_channel: str = "left",
    start: Callable[[int], None] = lambda num_items: None,
    progress: Callable[[int], None] = lambda num_items: None,
    say: Callable[[str], None] = lambda line: None,
) -> ImportSummary:
    """Write two-channel recordings and their transcripts as a Shar.

    Parameters
    ----------
    source
        A folder, searched with its subfolders, or a jsonl of ``{"path", "duration"}``, its paths relative to
        it (moshi-finetune's). Beside each audio file lies its transcript, with ``.json`` instead of the
        suffix: see :func:`~s2s_data.importing.turns.parse_transcript`.
    out_dir
        The Shar. A run that was stopped goes on there.
    options
        How to read and write.
    agent_channel
        "left" (moshi-finetune's) or "right".
    start
        Is told how many dialogues there are.
    progress
        Is told how many dialogues were finished.
    say
        Is told of each that is skipped.

    Raises
    ------
    DataError
        If there is nothing to import, or as :func:`~s2s_data.importing.shards.write_dialogues` does.

    """
    if agent_channel not in CHANNELS:
        raise DataError(f"agent_channel is {agent_channel!r}, but must be left or right")
    source, options = Path(source), options or ImportOptions()
    root = source if source.is_dir() else source.parent
    items = _of_folder(source) if source.is_dir() else _of_jsonl(source)
    start(len(items))
    plan = {"command": "import-stereo", "source": str(source.absolute()), "agent_channel": agent_channel}
    reader = StereoReader(options, CHANNELS.index(agent_channel), str(root))
    return write_dialogues(items, reader, Path(out_dir), options, plan=plan, progress=progress, say=say)


@dataclass(frozen=True)
class StereoReader:
    """Reads a two-channel file and the transcript beside it."""

    options: ImportOptions
    agent_channel: int  # 0 is left
    root: str

    def __call__(self, item: Item) -> RecordedDialogue:
        """Read one dialogue; raises :class:`DialogueError`."""
        path = Path(self.root) / item.row["path"]
        user, agent = read_stereo(path, self.agent_channel)
        stated_s = item.row.get("duration")
        if stated_s is not None and abs(stated_s - user.duration_s) > MAX_DURATION_DIFFERENCE_S:
            raise DialogueError(
                "another duration",
                f"{path}: lasts {user.duration_s:.2f} s, but its line says {stated_s:.2f} s: has it been replaced?",
            )
        transcript = path.with_suffix(".json")
        turns = parse_transcript(_load_json(transcript, path), self.options, str(transcript))
        if self.options.find_user_turns and not any(turn.role == USER for turn in turns):
            turns += loud_turns(user, USER, self.options.max_gap_s, turns)
        return RecordedDialogue(user, agent, fit_turns(turns, user.duration_s, str(transcript)))


def _load_json(path: Path, audio: Path) -> object:
    if not path.is_file():
        raise DialogueError("no transcript", f"{audio}: has no transcript {path.name} beside it: write one, or move it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DialogueError("unreadable transcript", f"{path}: isn't JSON: {error}: write it anew") from error


def _of_folder(folder: Path) -> list[Item]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not paths:
        raise DataError(f"{folder.absolute()} holds no audio ({', '.join(AUDIO_SUFFIXES)}): check the path")
    return [_item(str(path.relative_to(folder)), folder, {}) for path in paths]


def _of_jsonl(path: Path) -> list[Item]:
    items = []
    for where, row in read_rows(path):
        name, duration_s = row.get("path"), row.get("duration")
        if not isinstance(name, str):
            raise DataError(f"{where}: has no 'path' of an audio file; it has {', '.join(row)}")
        if duration_s is not None and not isinstance(duration_s, int | float):
            raise DataError(f"{where}: its duration must be a number of seconds, but is {duration_s!r}")
        items.append(_item(name, path.parent, {"duration": duration_s}))
    return items


def _item(name: str, root: Path, row: dict[str, float | None]) -> Item:
    path = root / name
    inside = path.relative_to(root) if path.is_relative_to(root) else path
    dialogue_id = "__".join(part for part in inside.with_suffix("").parts if part != inside.anchor)
    return Item(dialogue_id, str(path), {"path": name, **row})
