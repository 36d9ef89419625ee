"""What a model said: a folder of its speech, and its own texts where they are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2s_eval.folders.audio import Track, find_speech, probe, sides
from s2s_eval.folders.texts import Turn, read_records, read_text, read_turns, records_path, string_of, turns_of

TEXT_SUFFIX = ".hyp"  # ID.hyp.txt, ID.hyp.json: the model's own text


@dataclass(frozen=True)
class Hypothesis:
    """What a model said, and what it wrote."""

    agent: Track
    user: Track | None  # of a file with two channels
    text: str | None = None  # all that the model wrote; None: not known
    turns: list[Turn] | None = None  # the same turn by turn; None: the times aren't known


def find_hypotheses(folder: Path, agent_channel: int) -> dict[str, Hypothesis]:
    """Return the folder's hypotheses by id: its speech files, or the wavs that a validation kept.

    Raises ValueError for a folder that isn't there or has no speech, and for a file that can't be read.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder of the wavs to score")
    path = records_path(folder)
    if path:
        found = _validated(folder, read_records(path), agent_channel)
    else:
        found = {name: _hypothesis(file, agent_channel) for name, file in find_speech(folder).items()}
    if not found:
        raise ValueError(f"{folder} holds no speech to score: no .wav or .flac file")
    return found


def _hypothesis(path: Path, agent_channel: int) -> Hypothesis:
    return Hypothesis(*sides(probe(path), agent_channel), *_own_text(path))


def _own_text(path: Path) -> tuple[str | None, list[Turn] | None]:
    """Return the text beside a speech file and, if it has times, its turns."""
    timed, plain = path.with_suffix(f"{TEXT_SUFFIX}.json"), path.with_suffix(f"{TEXT_SUFFIX}.txt")
    if timed.is_file():
        turns = [turn for turn in read_turns(timed) if turn.role == "agent"]
        return " ".join(turn.text for turn in turns), turns
    return (read_text(plain) if plain.is_file() else None), None


def _validated(folder: Path, records: list[tuple[str, dict[str, Any]]], agent_channel: int) -> dict[str, Hypothesis]:
    """Return those dialogues of a validation whose audio was kept, with the texts of its ``dialogues.jsonl``."""
    # scores of a folder without texts are written with empty ones
    is_written = any(record.get("generated_text") for _, record in records)
    found = {}
    for place, record in records:
        if record.get("wav"):
            agent, user = sides(probe(folder / record["wav"]), agent_channel)
            text, turns = string_of(record, "generated_text", place), turns_of(record, "generated_turns", place)
            own = (text, turns) if is_written else (None, None)
            found[string_of(record, "cut_id", place)] = Hypothesis(agent, user, *own)
    return found
