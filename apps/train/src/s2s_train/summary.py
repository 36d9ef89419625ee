"""What is printed when training ends: how far it went, the last validation's metrics, where the report is."""

from __future__ import annotations

import json
from collections.abc import Mapping

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table

from s2s_train.run_folder import RunFolder


def print_summary(folder: RunFolder, trainer: Trainer) -> None:
    """Print the latest value of each metric in metrics.jsonl, and the paths of what the run left."""
    console = Console()
    latest = latest_metrics(folder)
    if latest:
        table = Table(title=f"{folder.path.name} at step {trainer.global_step}")
        table.add_column("metric")
        table.add_column("value", justify="right")
        table.add_column("step", justify="right")
        for name, (value, step) in sorted(latest.items()):
            table.add_row(name, f"{value:.4g}", str(step))
        console.print(table)
    if trainer.global_step == trainer.max_steps:
        console.print(f"finished trainer.max_steps={trainer.max_steps}; raise it and run again to go on")
    for title, path in (("checkpoint", folder.last_checkpoint), ("report", folder.report)):
        if path.exists():
            console.print(f"{title}: {path}", soft_wrap=True, highlight=False)


def print_metrics(title: str, metrics: Mapping[str, float]) -> None:
    """Print the metrics of one validation."""
    table = Table()
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4g}")
    console = Console()
    console.print(title, soft_wrap=True, highlight=False)
    console.print(table)


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
