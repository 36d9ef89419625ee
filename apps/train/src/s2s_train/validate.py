"""`validate`: score a checkpoint on the validation sets, on any mesh, and leave the run as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only

from s2s_train.config import AppConfig
from s2s_train.data_module import DuplexDataModule
from s2s_train.fit import ModelBuilder, ScorerBuilder, progress_bars, say, telling_other_models
from s2s_train.loggers import JsonlLogger, build_loggers
from s2s_train.run_folder import RunFolder
from s2s_train.summary import print_metrics
from s2s_train.trainer import build_trainer


class StepOfCheckpoint(Callback):
    """Gives the trainer the step of the checkpoint that it loads; Lightning does so in training alone."""

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put training's progress back."""
        trainer.fit_loop.load_state_dict(checkpoint["loops"]["fit_loop"])


def validate(
    cfg: AppConfig, checkpoint: Path | None, build_model: ModelBuilder, build_scorers: ScorerBuilder
) -> RunFolder:
    """Validate `checkpoint`, or the weights that the config itself gives; return the folder of the results.

    That is `validations/` in the run's folder: `metrics.jsonl`, `samples/` and `report.html`, as in the run's own.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    folder = RunFolder(RunFolder.of(cfg).path / "validations")
    if not cfg.data.validation_ds.datasets:
        raise ValueError("data.validation_ds.datasets is empty: there is nothing to validate on")
    seed_everything(cfg.seed, workers=True, verbose=False)
    jsonl = JsonlLogger(folder.metrics)
    trainer = build_trainer(
        replace(cfg.trainer, limit_train_batches=None, max_steps=max(cfg.trainer.max_steps, 0)),
        loggers=build_loggers(cfg.exp_manager, jsonl),
        callbacks=[StepOfCheckpoint(), *progress_bars(cfg.trainer), *build_scorers(cfg, folder)],
        root_dir=str(folder.path),
    )
    jsonl.current_step = lambda: trainer.global_step
    model = build_model(cfg)
    say(f"validating {checkpoint or 'the weights that the config gives'}; results go to {folder.path}")
    with telling_other_models(checkpoint, model):
        metrics = trainer.validate(model, DuplexDataModule(cfg.data), ckpt_path=checkpoint, verbose=False)
    rank_zero_only(print_metrics)(f"{checkpoint or cfg.name} at step {trainer.global_step}", metrics[0])
    if folder.report.exists():
        say(f"report: {folder.report}")
    return folder
