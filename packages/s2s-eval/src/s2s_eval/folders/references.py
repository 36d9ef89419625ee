"""What should have been said: texts, turns and speech by id, read when a hypothesis asks for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from s2s_eval.folders.audio import LEFT, RIGHT, Track, file_id, find_speech, probe, sides
from s2s_eval.folders.hypotheses import TEXT_SUFFIX, Hypothesis
from s2s_eval.folders.texts import Turn, read_records, read_text, read_turns, records_path, string_of, turns_of
from s2s_eval.samples import DIALOGUES_FILE, REFERENCE_SUFFIX


@dataclass(frozen=True)
class Reference:
    """What should have been said. At least one of ``text`` and ``agent`` is there."""

    turns: list[Turn] | None = None  # of user and agent; None: one turn, as long as the hypothesis
    text: str | None = None  # all that the agent says; None: to be heard in ``agent``
    agent: Track | None = None
    user: Track | None = None


ReadReference: TypeAlias = Callable[[], Reference]


def find_references(place: Path, hypotheses: Mapping[str, Hypothesis], agent_channel: int) -> dict[str, ReadReference]:
    """Return by id what reads a reference of ``place``: a folder, or a validation's ``dialogues.jsonl``.

    Raises ValueError for a place that isn't there or has none; reading one raises it for a file that can't be used.
    """
    if not place.exists():
        raise ValueError(f"no folder {place}: give the folder of the references, or a {DIALOGUES_FILE}")
    path = records_path(place)
    if path:
        found = _recorded(path, hypotheses)
    elif place.is_dir():
        found = _beside(place, hypotheses, agent_channel)
    else:
        raise ValueError(f"{place} is neither a folder nor a {DIALOGUES_FILE}")
    if not found:
        raise ValueError(f"{place} holds no reference: write there ID.txt, ID.json or ID.wav for each ID.wav to score")
    return found


def _beside(folder: Path, hypotheses: Mapping[str, Hypothesis], agent_channel: int) -> dict[str, ReadReference]:
    heard = {hypothesis.agent.file.path.resolve() for hypothesis in hypotheses.values()}
    # texts may lie in the very folder that is scored: a hypothesis isn't its own reference
    speech = {name: path for name, path in find_speech(folder).items() if path.resolve() not in heard}
    texts, turns = (_by_id(folder, suffix) for suffix in (".txt", ".json"))
    names = {name for name in {*speech, *texts, *turns} if not name.endswith((TEXT_SUFFIX, REFERENCE_SUFFIX))}
    return {
        name: partial(_read_files, turns.get(name), texts.get(name), speech.get(name), agent_channel) for name in names
    }


def _by_id(folder: Path, suffix: str) -> dict[str, Path]:
    paths = (path for path in folder.rglob(f"*{suffix}") if not path.name.startswith("."))
    return {file_id(folder, path): path for path in paths}


def _read_files(turns: Path | None, text: Path | None, speech: Path | None, agent_channel: int) -> Reference:
    agent, user = sides(probe(speech), agent_channel) if speech else (None, None)
    if turns:
        read = read_turns(turns)
        if not read:
            raise ValueError(f"{turns} has no turn: nothing to score against. Write the turns, or remove the file")
        return Reference(read, _agent_text(read), agent, user)
    if text:
        words = read_text(text)
        if not words:
            raise ValueError(f"{text} is empty: write what should have been said, or remove the file")
        return Reference(None, words, agent, user)
    return Reference(None, None, agent, user)


def _agent_text(turns: list[Turn]) -> str:
    return " ".join(turn.text for turn in turns if turn.role == "agent")


def _recorded(path: Path, hypotheses: Mapping[str, Hypothesis]) -> dict[str, ReadReference]:
    found: dict[str, ReadReference] = {}
    for place, record in read_records(path):
        name = string_of(record, "cut_id", place)
        # an id with other characters than a file name may have has a wav of another name
        own_name = Path(str(record.get("wav"))).stem
        name = own_name if name not in hypotheses and own_name in hypotheses else name
        if name in found:
            raise ValueError(f"{place}: {name!r} is there twice: keep one line of it")
        found[name] = partial(_read_record, path.parent, place, record)
    return found


def _read_record(folder: Path, place: str, record: dict[str, Any]) -> Reference:
    turns = turns_of(record, "turns", place)
    agent, user = (
        _kept(folder, record.get(key), channel) for key, channel in (("reference_wav", RIGHT), ("wav", LEFT))
    )
    return Reference(turns, string_of(record, "reference_text", place), agent, user)


def _kept(folder: Path, name: str | None, channel: int) -> Track | None:
    """Return a wav of the validation, if its audio was kept and is still there."""
    return Track(probe(folder / name), channel) if name and (folder / name).is_file() else None
