"""`validate`: score a checkpoint on the validation sets, on any mesh, and leave the run as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from s2s_train.config import AppConfig
from s2s_train.data_module import DuplexDataModule
from s2s_train.fit import ModelBuilder, ScorerBuilder, progress_bars, say, telling_other_models
from s2s_train.loggers import JsonlLogger, build_loggers, finishing_wandb
from s2s_train.run_folder import RunFolder
from s2s_train.summary import print_metrics
from s2s_train.trainer import build_trainer


@dataclass(frozen=True)
class Evaluation:
    """What is scored, and where the figures go."""

    name: str
    section: str  # of `data`
    folder: str  # in the run's
    limit: str  # key of `trainer`: batches of each set
    prefix: str  # of metrics' names, in place of val_

    def renamed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics under this evaluation's names."""
        return {self.prefix + key[4:] if key.startswith("val_") else key: value for key, value in metrics.items()}

    def rename_in(self, loggers: list[Logger]) -> list[Logger]:
        """Let the loggers log so, and return them."""
        for logger in loggers if self.prefix != VALIDATION.prefix else []:
            _log_renamed(logger, self)
        return loggers


VALIDATION = Evaluation("validate", "validation_ds", "validations", "limit_val_batches", "val_")
TEST = Evaluation("test", "test_ds", "tests", "limit_test_batches", "test_")


def _log_renamed(logger: Logger, what: Evaluation) -> None:
    """Let the logger rename metrics: model and scorers know of validation alone.

    Its own method does so, not a logger around it: scorers give samples to the kinds of loggers that they know.
    """
    log_metrics = logger.log_metrics

    def log_renamed(metrics: Mapping[str, float], step: int | None = None) -> None:
        log_metrics(what.renamed(metrics), step)

    logger.log_metrics = log_renamed  # type: ignore[method-assign]


class StepOfCheckpoint(Callback):
    """Gives the trainer the step of the checkpoint that it loads; Lightning does so in training alone."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put training's progress back."""
        trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])


@finishing_wandb()
def validate(
    cfg: AppConfig,
    checkpoint: Path | None,
    build_model: ModelBuilder,
    build_scorers: ScorerBuilder,
    what: Evaluation = VALIDATION,
) -> RunFolder:
    """Validate `checkpoint`, or the weights that the config itself gives; return the folder of the results.

    That is `validations/` (`tests/`) in the run's folder: `metrics.jsonl`, `samples/` and `report.html`, as in the
    run's own.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    folder = RunFolder(RunFolder.of(cfg).path / what.folder)
    if not getattr(cfg.data, what.section).datasets:
        raise ValueError(f"data.{what.section}.datasets is empty: there is nothing to {what.name} on")
    if getattr(cfg.trainer, what.limit) == 0:
        raise ValueError(f"trainer.{what.limit} is 0: there is nothing to {what.name} on, set it to null or above 0")
    seed_everything(cfg.seed, workers=True, verbose=False)
    jsonl = JsonlLogger(folder.metrics)
    trainer = build_trainer(
        replace(
            cfg.trainer,
            limit_train_batches=None,
            limit_val_batches=getattr(cfg.trainer, what.limit),
            max_steps=max(cfg.trainer.max_steps, 0),
        ),
        loggers=what.rename_in(build_loggers(cfg.exp_manager, jsonl)),
        callbacks=[StepOfCheckpoint(), *progress_bars(cfg.trainer), *build_scorers(cfg, folder)],
        root_dir=str(folder.path),
    )
    jsonl.current_step = lambda: trainer.global_step
    model = build_model(cfg)
    say(f"{what.name}: {checkpoint or 'the weights that the config gives'}; results go to {folder.path}")
    with telling_other_models(checkpoint, model):
        metrics = trainer.validate(model, DuplexDataModule(cfg.data, what.section), ckpt_path=checkpoint, verbose=False)
    title = f"{checkpoint or cfg.name} at step {trainer.global_step}"
    rank_zero_only(print_metrics)(title, what.renamed(metrics[0]), what.prefix.rstrip("_"), folder.metrics)
    if folder.report.exists():
        say(f"report: {folder.report}")
    return folder
