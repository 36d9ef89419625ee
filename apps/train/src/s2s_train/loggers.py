"""metrics.jsonl, and the loggers that exp_manager asks for."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from s2s_parallel.atomic_file import write_atomically
from s2s_train.exp_config import ExpConfig
from s2s_train.stop_signals import owes_validation


class JsonlLogger(Logger):
    """Appends one JSON object a log step: `step`, `epoch`, `time_s`, then the metrics.

    `step` counts finished optimizer steps, `time_s` seconds of running, over all resumed parts of the run. A
    value that isn't finite is null. Each line is on disk when `log_metrics` returns.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.current_step: Callable[[], int] | None = None
        self._started = time.monotonic()
        self._time_before_s = 0.0

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return self.path.parent.name

    @property
    def version(self) -> str:
        """One run has one file."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line. Where Lightning is bound, its count of optimizer steps is `step`."""
        metrics = dict(metrics)
        epoch = metrics.pop("epoch", None)
        line = {
            "step": self.current_step() if self.current_step else step,
            "epoch": None if epoch is None else int(epoch),
            "time_s": round(self._time_before_s + time.monotonic() - self._started, 3),
            **{name: _finite_or_none(value) for name, value in metrics.items()},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run's config.yaml has them."""

    @rank_zero_only
    def rewind(self, step: int, *, before_validation: bool = False) -> None:
        """Drop the lines after `step`, and one that a kill cut short: training goes on from `step`.

        Args:
            step: the optimizer steps done.
            before_validation: drop the validation of `step` too, since it will be done anew.
        """
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        first_dropped = (step, "val_") if before_validation else (step + 1, "")
        kept = [line for line in _whole_lines(text) if not _is_behind(json.loads(line), *first_dropped)]
        self._time_before_s = json.loads(kept[-1])["time_s"] if kept else 0.0
        self._started = time.monotonic()
        rewound = "".join(f"{line}\n" for line in kept)
        if rewound != text:
            write_atomically(self.path, lambda file: file.write(rewound.encode()))


class CsvCopy(JsonlLogger):
    """Keeps metrics.csv, the table of metrics.jsonl: a row a line, a column a name, empty where there is none.

    Written anew after each validation and at the end, since names come up as a run goes on, and a resumed one takes
    lines back. Lightning's own CSVLogger deletes what an earlier part of a run has left.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the table if a validation has ended."""
        if any(name.startswith("val_") for name in metrics):
            self.write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the table."""
        self.write()

    def write(self) -> None:
        """Write the table of what is in metrics.jsonl."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        lines = [json.loads(line) for line in _whole_lines(text)]
        table = io.StringIO()
        writer = csv.DictWriter(table, list(dict.fromkeys(name for line in lines for name in line)))
        writer.writeheader()
        writer.writerows(lines)
        if lines:
            write_atomically(self.path.with_suffix(".csv"), lambda file: file.write(table.getvalue().encode()))


class MetricsFollowSteps(Callback):
    """Ties a JsonlLogger to the trainer: its step count, and a rewind to where training starts from.

    Lightning's own count for loggers (`_batches_that_stepped`) is one behind, and one off after some resumes.
    """

    def __init__(self, logger: JsonlLogger) -> None:
        self._logger = logger

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The checkpoint is restored by now: what was logged after it will be logged again."""
        self._logger.current_step = lambda: trainer.global_step
        self._logger.rewind(trainer.global_step, before_validation=owes_validation(trainer))


def build_loggers(exp: ExpConfig, jsonl: JsonlLogger) -> list[Logger]:
    """Return `jsonl` and the loggers that `exp` asks for."""
    loggers: list[Logger] = [jsonl]
    if exp.create_csv_logger:
        loggers.append(CsvCopy(jsonl.path))
    if exp.create_tensorboard_logger:
        options = {"name": "", "version": "tensorboard", **exp.summary_writer_kwargs}
        loggers.append(TensorBoardLogger(save_dir=jsonl.save_dir, **options))
    if exp.create_wandb_logger:
        loggers.append(WandbLogger(save_dir=jsonl.save_dir, **{"name": jsonl.name, **exp.wandb_logger_kwargs}))
    return loggers


@contextmanager
def finishing_wandb() -> Iterator[None]:
    """Finish the W&B run that was begun inside, with the exit code of what ended it; a run begun before goes on.

    W&B alone does so when the process ends, and logs the process's next run into this one.
    """
    before = _wandb_run()
    exit_code = 0
    try:
        yield
    except BaseException as error:
        exit_code = getattr(error, "exit_code", 1)
        raise
    finally:
        begun = _wandb_run()
        if begun is not None and begun is not before:
            begun.finish(exit_code)


def _wandb_run() -> Any:
    """Return W&B's run of this process, or None; W&B isn't imported where no logger did so."""
    return getattr(sys.modules.get("wandb"), "run", None)


def _is_behind(line: Mapping[str, Any], step: int, prefix: str) -> bool:
    """Whether `line` is of a later step, or of `step` with a metric of that prefix."""
    line_step = line["step"] or 0
    return line_step > step or (line_step == step and any(name.startswith(prefix) for name in line))


def _whole_lines(text: str) -> Iterable[str]:
    for line in text.splitlines():
        try:
            json.loads(line)
        except ValueError:
            continue
        yield line


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
