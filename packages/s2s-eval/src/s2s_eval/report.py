"""report.html: the last validation of a run, to read and to listen to, as one page that needs no network."""

import json
import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from s2s_eval.metrics import corpus_wer
from s2s_eval.report_audio import mp3_data_url, waveform_peaks
from s2s_eval.samples import DIALOGUES_FILE, SCORES_FILE

MAX_POINTS = 300  # of a curve
# the charts' titles, and the metrics drawn in each: the name itself and, of validation, <name>_<data set>
CHARTS = {
    "Training loss": ("train_loss", "train_text_loss", "train_audio_loss"),
    "Validation loss": ("val_loss",),
    "ASR-BLEU (dashed: the codec's ceiling)": ("val_asr_bleu", "ceiling_asr_bleu"),
    "Text BLEU": ("val_txt_bleu",),
}


def write_report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run's folder from its ``samples/`` and ``metrics.jsonl``; return its path.

    Either may be missing: the page then says so. The page replaces the old one in one move.
    """
    run = Path(run_dir).resolve()
    folder = _last_validation(run)
    history = _history(run / "metrics.jsonl")
    scores = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8")) if folder else {}
    data = {
        "run": run.name,
        "step": scores.get("step"),
        "about": scores.get("about", {}),
        "metrics": _last_metrics(history, scores),
        "charts": _charts(history),
        "samples": [_sample(path.parent, line) for path, line in _dialogues(folder)] if folder else [],
    }
    path = run / "report.html"
    unfinished = run / "report.html.part"
    unfinished.write_text(_page(data), encoding="utf-8")
    unfinished.replace(path)
    return path


def _page(data: dict[str, Any]) -> str:
    parts = files("s2s_eval") / "report_page"
    page = (parts / "page.html").read_text(encoding="utf-8")
    # "<" is the one character that could end the data's script element early
    island = json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")
    title = data["run"].replace("&", "&amp;").replace("<", "&lt;")
    for marker, text in [
        ("@@title@@", title),
        ("@@css@@", (parts / "page.css").read_text(encoding="utf-8")),
        ("@@js@@", (parts / "page.js").read_text(encoding="utf-8")),
        ("@@data@@", island),
    ]:
        page = page.replace(marker, text)
    return page


def _last_validation(run: Path) -> Path | None:
    found = [path.parent for path in (run / "samples").glob(f"step_*/{SCORES_FILE}")]
    return max(found, key=lambda folder: int(folder.name.removeprefix("step_")), default=None)


def _history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl; a row that a killed run left half written is passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _last_metrics(history: list[dict[str, Any]], scores: dict[str, Any]) -> dict[str, float]:
    """Return the last value of each validation metric: of the loggers' rows, then of the validation shown."""
    last: dict[str, float] = {}
    for row in history:
        last |= {name: value for name, value in row.items() if name.startswith("val_") and _is_finite(value)}
    shown: dict[str, float] = scores.get("metrics", {})
    return last | shown


def _charts(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = sorted({name for row in history for name in row})
    charts = []
    for title, stems in CHARTS.items():
        wanted = [
            name
            for stem in stems
            for name in names
            if name == stem or (name.startswith(f"{stem}_") and not stem.startswith("train"))
        ]
        series = [{"name": name, "points": points} for name in wanted if (points := _points(history, name))]
        if series:
            charts.append({"title": title, "from_zero": "BLEU" in title, "series": series})
    return charts


def _points(history: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    points = [(row["step"], row[name]) for row in history if name in row and _is_finite(row[name])]
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    return points[::-1][::stride][::-1]  # thinned out from the end, so that the last value stays


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _dialogues(folder: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.glob(f"*/{DIALOGUES_FILE}")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield path, json.loads(line)


def _sample(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of one dialogue, its audio included where it was kept."""
    for turn in record["scored_turns"]:
        turn["wer"] = corpus_wer([turn["asr"]], [turn["reference"]])
    if not (record["wav"] and (folder / record["wav"]).exists() and (folder / record["reference_wav"]).exists()):
        return record | {"audio": None}
    stereo, rate = soundfile.read(folder / record["wav"], dtype="float32", always_2d=True)
    reference, reference_rate = soundfile.read(folder / record["reference_wav"], dtype="float32")
    duration_s = max(len(stereo) / rate, len(reference) / reference_rate)
    tracks = {
        "user": (stereo[:, 0], rate),
        "reference": (reference, reference_rate),
        "generated": (np.ascontiguousarray(stereo[:, 1]), rate),
    }
    return record | {
        "duration_s": duration_s,
        "audio": {name: mp3_data_url(*track) for name, track in tracks.items()} | {"mix": mp3_data_url(stereo, rate)},
        "peaks": {name: waveform_peaks(*track, duration_s) for name, track in tracks.items()},
    }
