"""What the report shows of each dialogue."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from s2s_eval.metrics import corpus_wer, is_right
from s2s_eval.samples import DIALOGUES_FILE, Wavs

# what only newer runs have
OPTIONAL: dict[str, Any] = {"generated_speech": [], "responses": [], "barge_ins": []}


def page_dialogues(
    folder: Path, language: str, datasets: Collection[str] | None
) -> list[tuple[dict[str, Any], Wavs | None]]:
    """Return the dialogues of a validation's folder, each with its wavs if its audio was kept.

    ``datasets`` are the names of the data sets' folders; None: all that there are. Those dialogues whose words are most
    wrong come first, as on the page, so that their audio is there first too.
    """
    found = []
    for path in sorted(folder.glob(f"*/{DIALOGUES_FILE}")):
        if datasets is not None and path.parent.name not in datasets:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.append((_shown(record, language), _wavs(path.parent, record)))
    found.sort(key=lambda one: -(one[0]["scores"].get("wer") or 0))
    return found


def _shown(record: dict[str, Any], language: str) -> dict[str, Any]:
    turns = [turn | _judged(turn, language) for turn in record["scored_turns"]]
    names = ("dataset", "cut_id", "duration_s", "turns", "generated_turns", "reference_text", "generated_text")
    optional = {name: record.get(name) or nothing for name, nothing in OPTIONAL.items()}
    return {name: record[name] for name in names} | optional | {"scored_turns": turns, "scores": _scores(record)}


def _judged(turn: dict[str, Any], language: str) -> dict[str, Any]:
    """Return how wrong the words heard in a turn are, and whether its value is heard (None: no value)."""
    value = turn.get("value")
    return {
        "value": value,
        "is_heard": is_right(turn["asr"], value, language),
        "wer": corpus_wer([turn["asr"]], [turn["reference"]], language),
    }


def _scores(record: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one dialogue that there are, by the page's names for them."""
    responses, barge_ins = record.get("responses"), record.get("barge_ins")
    counts = record.get("statistics") or {}
    scores = {
        "wer": record.get("asr_wer"),
        "bleu": record.get("asr_bleu"),
        "answers": record.get("answer_accuracy"),
        "written_answers": record.get("answer_accuracy_text"),
        "latency": record.get("latency_s"),
        "missed": sum(response["latency_s"] is None for response in responses) if responses else None,
        "barge_ins": sum(not barge_in["success"] for barge_in in barge_ins) if barge_ins else None,
        "quality": record.get("quality"),
        "similarity": record.get("speaker_similarity"),
        "tokens": 100 * counts["token_hits"] / counts["tokens"] if counts.get("tokens") else None,
        "codes": _share(counts.get("code_hits"), counts.get("frames")),
    }
    return {name: value for name, value in scores.items() if value is not None}


def _share(hits_K: list[int] | None, frames: int | None) -> float | None:
    return 100 * sum(hits_K) / (frames * len(hits_K)) if hits_K and frames else None


def _wavs(folder: Path, record: dict[str, Any]) -> Wavs | None:
    if not record.get("wav"):
        return None
    wavs = Wavs(folder / record["wav"], folder / record["reference_wav"])
    return wavs if wavs.stereo.exists() and wavs.reference.exists() else None
