"""When a run is saved: `last.ckpt`, from which it goes on, and the best ones by a validation metric."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

from s2s_parallel.strategy import MeshStrategy
from s2s_train.exp_config import ExpConfig
from s2s_train.run_folder import RunFolder
from s2s_train.stop_signals import owes_validation

_LOWER_IS_BETTER = re.compile(
    r"(val|train)_((text_|audio_|user_text_)?loss|(asr|said)_(wer|cer)|(text|token|code)_perplexity|empty_rate|latency_s"
    r"|missed_turns|talk_over|barge_in_stop_s|false_stops)(_|$)"
)


class LastCheckpoint(Checkpoint):
    """Keeps `last.ckpt`: after each validation, every n steps, and when training stops.

    At a step that is followed by validation it is saved after that, so that whatever a checkpoint's step has to
    log is in metrics.jsonl already. Lightning's ModelCheckpoint saves before, and a run killed in validation
    would then go on without it.
    """

    def __init__(self, path: Path, every_n_train_steps: int | None = None) -> None:
        self._path = path
        self._every_n_train_steps = every_n_train_steps
        self._step_saved = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was just loaded needs no saving, unless its validation is still to come."""
        self._step_saved = -1 if owes_validation(trainer) else trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if a save is due and no validation follows."""
        if validation_follows(trainer):
            return
        if trainer.received_sigterm:
            self.save_and_wait(trainer)
        elif self._is_due(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the step that was validated."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def save_and_wait(self, trainer: Trainer) -> None:
        """Save the step at which the run stops; it is on disk when this returns.

        Raises:
            CheckpointWriteError: the system refused.
        """
        self._save(trainer)
        if isinstance(trainer.strategy, MeshStrategy):
            trainer.strategy.wait_for_save()

    def _is_due(self, trainer: Trainer) -> bool:
        every = self._every_n_train_steps
        stops = trainer.should_stop or trainer.global_step == trainer.max_steps or trainer.is_last_batch
        return stops or bool(every and trainer.global_step % every == 0)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._step_saved:
            trainer.save_checkpoint(self._path)
            self._step_saved = trainer.global_step


class BestCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that knows of a checkpoint still being written, whose name is then taken."""

    def file_exists(self, filepath: str | Path, trainer: Trainer) -> bool:
        """Whether there is, or soon will be, a checkpoint `filepath`; the same on all processes."""
        strategy = trainer.strategy
        is_saving = isinstance(strategy, MeshStrategy) and strategy.is_saving(filepath)
        return is_saving or super().file_exists(filepath, trainer)


def build_checkpoints(exp: ExpConfig, folder: RunFolder, has_scoring_asr: bool) -> list[Checkpoint]:
    """Return the checkpoint callbacks, `last` behind `best`, whose scores it holds.

    Raises:
        ValueError: .nemo files are asked for, a mode that isn't max or min, or a score that nothing computes.
    """
    if not exp.create_checkpoint_callback:
        return []
    params = exp.checkpoint_callback_params
    for key in ("always_save_nemo", "save_nemo_on_train_end"):
        if getattr(params, key):
            raise ValueError(
                f"exp_manager.checkpoint_callback_params.{key}: .nemo files aren't written, set it to false;"
                f" checkpoints are {folder.checkpoints}/*.ckpt"
            )
    monitor = params.monitor or ("val_asr_bleu" if has_scoring_asr else "val_loss")
    mode = params.mode or ("min" if _LOWER_IS_BETTER.match(monitor) else "max")
    if monitor.startswith("val_asr_bleu") and not has_scoring_asr:
        raise ValueError(
            f"exp_manager.checkpoint_callback_params.monitor is {monitor}, which needs model.scoring_asr:"
            " give one, or monitor val_loss"
        )
    if mode not in ("max", "min"):
        raise ValueError(f"exp_manager.checkpoint_callback_params.mode is {mode!r}: use max or min")
    best = BestCheckpoint(
        dirpath=folder.checkpoints.absolute(),
        filename=params.filename,
        monitor=monitor,
        mode=mode,
        save_top_k=params.save_top_k,
        every_n_epochs=params.every_n_epochs,
        save_on_train_epoch_end=False,
    )
    last = LastCheckpoint(folder.last_checkpoint.absolute(), params.every_n_train_steps)
    return [best, last] if params.save_last else [best]


def validation_follows(trainer: Trainer) -> bool:
    """Whether the batch that was just trained on is followed by validation."""
    # Lightning asks itself just this after the hook; it offers no public way to ask (checked with 2.5.6).
    loop = trainer.fit_loop
    return loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
