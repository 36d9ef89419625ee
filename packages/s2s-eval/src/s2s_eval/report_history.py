"""A run's validations and its metrics over the steps, for the report."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2s_eval.samples import SCORES_FILE

MAX_POINTS = 300  # of a curve
# the charts' titles, the metrics drawn in each, and whether it is seen at once; a validation metric is drawn for each
# data set too
CHARTS: list[tuple[str, tuple[str, ...], bool]] = [
    ("ASR-BLEU", ("val_asr_bleu", "ceiling_asr_bleu"), True),
    ("Text BLEU", ("val_txt_bleu",), True),
    ("Validation loss", ("val_loss",), True),
    ("Training loss", ("train_loss", "train_text_loss", "train_audio_loss"), True),
    ("Answers right in its speech, %", ("val_answer_accuracy", "ceiling_answer_accuracy"), True),
    ("Answers right in its text, %", ("val_answer_accuracy_text",), False),
    ("Words misheard in its speech, %", ("val_asr_wer",), False),
    ("Words misheard against its own text, %", ("val_said_wer",), False),
    ("Latency of answers, median, s", ("val_latency_s_median",), False),
    ("Missed turns, %", ("val_missed_turns",), False),
    ("Barge-ins it yields to, %", ("val_barge_in_success",), False),
    ("Text tokens right, %", ("val_token_accuracy",), False),
    ("Audio codes right, %", ("val_code_accuracy",), False),
    ("Quality", ("val_quality",), False),
    ("Speaker similarity", ("val_speaker_similarity",), False),
]


@dataclass(frozen=True)
class Validation:
    """One validation that was scored."""

    step: int
    folder: Path
    metrics: dict[str, float]
    about: dict[str, str]
    has_page: bool
    datasets: list[str] | None  # names of their folders; None: an older run's, all that there are


def find_validations(run: Path) -> list[Validation]:
    """Return the run's validations in order of their steps."""
    found = []
    for path in (run / "samples").glob(f"step_*/{SCORES_FILE}"):
        scores = json.loads(path.read_text(encoding="utf-8"))
        has_page = (path.parent / "report.html").exists()
        metrics = _finite_only(scores.get("metrics", {}))
        about, datasets = scores.get("about", {}), scores.get("datasets")
        found.append(Validation(scores["step"], path.parent, metrics, about, has_page, datasets))
    return sorted(found, key=lambda validation: validation.step)


def metrics_rows(run: Path, validations: Iterable[Validation]) -> dict[int, dict[str, float]]:
    """Return the finite metrics of each step, in order: those of metrics.jsonl and, over them, of the validations.

    A row that a killed run left half written is passed over.
    """
    path = run / "metrics.jsonl"
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.setdefault(row["step"], {}).update(_finite_only(row))
    for validation in validations:
        rows.setdefault(validation.step, {}).update(validation.metrics)
    return dict(sorted(rows.items()))


def shown_metrics(rows: dict[int, dict[str, float]], shown: Validation | None) -> dict[str, float]:
    """Return the metrics of a validation: its own, and of its step those that others logged, such as the losses."""
    if shown is None:
        return {}
    logged = {name: value for name, value in rows.get(shown.step, {}).items() if name.startswith("val_")}
    return logged | shown.metrics


def dataset_names(rows: dict[int, dict[str, float]], shown: set[str]) -> list[str]:
    """Return the names of the data sets: those shown and those that the metrics' names end in."""
    names = {name for row in rows.values() for name in row}
    found = {
        name.removeprefix(stem) for name in names for stem in ("val_txt_bleu_", "val_loss_") if name.startswith(stem)
    }
    return sorted(found | shown)


def charts(rows: dict[int, dict[str, float]], datasets: Iterable[str]) -> list[dict[str, Any]]:
    """Return the charts that have a point, as the page draws them."""
    drawn = []
    for title, stems, is_main in CHARTS:
        wanted = [(stem, stem, "all" if stem.startswith("val_") else stem) for stem in stems]
        if not title.startswith("Training"):
            wanted += [(f"{stem}_{name}", stem, name) for name in datasets for stem in stems]
        series = [
            {"name": name, "label": label, "is_ceiling": stem.startswith("ceiling"), "points": points}
            for name, stem, label in wanted
            if (points := _points(rows, name))
        ]
        if series:
            drawn.append({"title": title, "is_main": is_main, "from_zero": "loss" not in title, "series": series})
    return drawn


def _points(rows: dict[int, dict[str, float]], name: str) -> list[tuple[int, float]]:
    points = [(step, row[name]) for step, row in rows.items() if name in row]
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    return points[::-1][::stride][::-1]  # thinned out from the end, so that the last value stays


def _finite_only(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
