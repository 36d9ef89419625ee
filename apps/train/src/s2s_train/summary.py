"""What is printed when training ends: how far it went, the last validation's metrics, where the report is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from s2s_train.headline import headline
from s2s_train.run_folder import RunFolder

TRAINING = ("train_loss", "train_text_loss", "train_audio_loss", "audio_s_per_s", "mfu", "memory_gib")


def print_summary(folder: RunFolder, trainer: Trainer) -> None:
    """Print how far training went, the last validation's main figures, and the paths of what the run left."""
    console = Console()
    latest = {name: value for name, (value, _) in latest_metrics(folder).items()}
    told = " | ".join(f"{name} {latest[name]:.4g}" for name in TRAINING if name in latest)
    console.print(f"{folder.path.name} at step {trainer.global_step}" + (f" | {told}" if told else ""), soft_wrap=True)
    _print_headline(console, latest, "val", folder.metrics)
    if trainer.global_step == trainer.max_steps:
        console.print(f"finished trainer.max_steps={trainer.max_steps}; raise it and run again to go on")
    for title, path in (("checkpoint", folder.last_checkpoint), ("report", folder.report)):
        if path.exists():
            console.print(f"{title}: {path}", soft_wrap=True, highlight=False)


def print_metrics(title: str, metrics: Mapping[str, float], stage: str, file: Path) -> None:
    """Print the main figures of one validation; all of them are in `file`."""
    console = Console()
    console.print(title, soft_wrap=True, highlight=False)
    _print_headline(console, metrics, stage, file)


def _print_headline(console: Console, metrics: Mapping[str, float], stage: str, file: Path) -> None:
    titles, rows = headline(metrics, stage)
    if not rows:
        return
    table = Table("data set")
    for title in titles:
        table.add_column(title, justify="right")
    for dataset, cells in rows.items():
        table.add_row(dataset, *cells)
    console.print(table)
    console.print(f"all metrics: {file}", soft_wrap=True, highlight=False)


def latest_metrics(folder: RunFolder) -> dict[str, tuple[float, int]]:
    """Return for each metric its last value in metrics.jsonl and the step of it."""
    latest: dict[str, tuple[float, int]] = {}
    if folder.metrics.exists():
        for text in folder.metrics.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            for name, value in line.items():
                if name not in ("step", "epoch", "time_s") and value is not None:
                    latest[name] = (value, line["step"])
    return latest
