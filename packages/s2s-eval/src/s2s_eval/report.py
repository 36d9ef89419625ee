"""report.html: a validation to read and to listen to, as one page that needs no network.

``samples/step_<N>/report.html`` of a run's folder is the page of one validation, ``report.html`` the newest one's. Each
names all validations so far and links those that have a page.
"""

import html
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from s2s_eval.report_audio import audio_islands
from s2s_eval.report_dialogues import page_dialogues
from s2s_eval.report_history import Validation, charts, dataset_names, find_validations, metrics_rows, shown_metrics
from s2s_eval.samples import Wavs, finite

REPORT_FILE = "report.html"
SCRIPTS = ("elements.js", "metrics.js", "scores.js", "charts.js", "timeline.js", "audio.js", "dialogue.js", "list.js")


def write_report(run_dir: str | Path, step: int | None = None) -> Path:
    """Write the page of the validation at ``step`` from a run's ``samples/`` and ``metrics.jsonl``; return its path.

    Without ``step`` it is the newest validation's. The newest one's is also the run's ``report.html``, whose path is
    returned. Either source may be missing: the page then says so. Pages replace old ones in one move. Raises
    ValueError for a step that wasn't validated.
    """
    run = Path(run_dir).resolve()
    validations = find_validations(run)
    shown = _choose(validations, step, run)
    page = (shown.folder if shown else run) / REPORT_FILE
    _write_page(page, run, shown, validations)
    if shown is None or shown != validations[-1]:
        return page
    newest = run / REPORT_FILE
    _place(page, newest)
    return newest


def _choose(validations: list[Validation], step: int | None, run: Path) -> Validation | None:
    if step is None:
        return validations[-1] if validations else None
    for validation in validations:
        if validation.step == step:
            return validation
    known = ", ".join(str(validation.step) for validation in validations) or "none"
    raise ValueError(f"{run}/samples has no validation of step {step}; it has: {known}")


def _write_page(path: Path, run: Path, shown: Validation | None, validations: list[Validation]) -> None:
    rows = metrics_rows(run, validations)
    dialogues = page_dialogues(shown.folder, shown.about.get("language", "en"), shown.datasets) if shown else []
    metrics = shown_metrics(rows, shown)
    datasets = dataset_names(rows, {record["dataset"] for record, _ in dialogues})
    data = {
        "run": run.name,
        "step": shown.step if shown else None,
        "about": shown.about if shown else {},
        "datasets": datasets,
        "metrics": metrics,
        "charts": charts(rows, datasets),
        "validations": [
            {
                "step": one.step,
                "metrics": shown_metrics(rows, one),
                # a path within the run: the page knows where in it it lies
                "page": (one.folder / REPORT_FILE).relative_to(run).as_posix()
                if one == shown or one.has_page
                else None,
            }
            for one in validations
        ],
        "dialogues": [record | {"audio": wavs is not None} for record, wavs in dialogues],
    }
    wavs = [(number, wavs) for number, (_, wavs) in enumerate(dialogues) if wavs is not None]
    unfinished = path.with_suffix(".html.part")
    # half a character, which a tokenizer may leave, has no UTF-8 but an escape in JSON
    with unfinished.open("w", encoding="utf-8", errors="backslashreplace") as out:
        out.writelines(_page(data, wavs))
    unfinished.replace(path)


def _page(data: dict[str, Any], wavs: list[tuple[int, Wavs]]) -> Iterable[str]:
    """Yield the page piece by piece: its audio is never in memory all at once."""
    sources = files("s2s_eval") / "report_page"
    template = (sources / "page.html").read_text(encoding="utf-8")
    title = data["run"] if data["step"] is None else f"{data['run']}, step {data['step']}"
    for i, piece in enumerate(re.split(r"@@(\w+)@@", template)):
        if i % 2 == 0:
            yield piece
        elif piece == "title":
            yield html.escape(title)
        elif piece == "css":
            yield (sources / "page.css").read_text(encoding="utf-8")
        elif piece == "js":
            yield from ((sources / name).read_text(encoding="utf-8") for name in SCRIPTS)
        elif piece == "data":
            yield _island(finite(data))
        else:
            assert piece == "audio", piece
            for number, sound in audio_islands(wavs):
                yield f'<script type="application/json" id="audio-{number}">{_island(asdict(sound))}</script>\n'


def _island(data: dict[str, Any]) -> str:
    # "<" is the one character that could end the data's script element early
    return json.dumps(data, allow_nan=False, ensure_ascii=False).replace("<", "\\u003c")


def _place(page: Path, path: Path) -> None:
    """Put the page at a second path too, without its weight where the file system can."""
    unfinished = path.with_suffix(".html.part")
    unfinished.unlink(missing_ok=True)
    try:
        os.link(page, unfinished)
    except OSError:
        shutil.copyfile(page, unfinished)
    unfinished.replace(path)
