"""The few metrics of a validation that are shown on the screen, a row for each data set; all are in metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping

# the titles of the columns, and the metrics that stand there, without val_ or test_ and the data set's name
COLUMNS = {
    "loss": "{stage}_loss",
    "ASR-BLEU": "{stage}_asr_bleu",
    "ceiling": "ceiling_asr_bleu",
    "floor": "shuffled_asr_bleu",
    "answers %": "{stage}_answer_accuracy",
    "WER %": "{stage}_asr_wer",
    "text BLEU": "{stage}_txt_bleu",
    "latency s": "{stage}_latency_s_median",
    "missed %": "{stage}_missed_turns",
}
ALL = "all"


def headline(metrics: Mapping[str, float], stage: str = "val") -> tuple[list[str], dict[str, list[str]]]:
    """Return the titles of the columns that have a value, and for each data set, then all together, what stands there.

    Args:
        metrics: by their logged names.
        stage: `val` or `test`, as the names begin.
    """
    stems = {title: name.format(stage=stage) for title, name in COLUMNS.items()}
    prefix = f"{stems['loss']}_"
    datasets = sorted(name.removeprefix(prefix) for name in metrics if name.startswith(prefix))
    suffixes = {**{dataset: f"_{dataset}" for dataset in datasets}, ALL: ""}
    ends = suffixes.values()
    titles = [title for title, stem in stems.items() if any(f"{stem}{end}" in metrics for end in ends)]
    rows = {
        dataset: [_shown(metrics.get(f"{stems[title]}{suffix}")) for title in titles]
        for dataset, suffix in suffixes.items()
    }
    return titles, {dataset: cells for dataset, cells in rows.items() if any(cells)}


def headline_of_all(metrics: Mapping[str, float]) -> str:
    """Return the figures over all data sets as one line."""
    titles, rows = headline(metrics)
    cells = rows.get(ALL, [])
    return " | ".join(f"{title} {cell}" for title, cell in zip(titles, cells, strict=bool(cells)) if cell)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
