"""`fit`: build what the config says, train, report."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from s2s_eval.report import write_report
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_parallel.checkpoint_folder import whole_path
from s2s_parallel.mismatch import explain_mismatch
from s2s_train.callbacks import AudioThroughput, RunFolderBegins, RunTimer, StepSeed
from s2s_train.checkpoints import build_checkpoints
from s2s_train.config import AppConfig
from s2s_train.data_module import DuplexDataModule
from s2s_train.loggers import JsonlLogger, MetricsFollowSteps, build_loggers
from s2s_train.progress import BarProgress, LineProgress
from s2s_train.run_folder import RunFolder
from s2s_train.summary import print_summary
from s2s_train.trainer import build_trainer
from s2s_train.trainer_config import TrainerConfig

ModelBuilder = Callable[[AppConfig], LightningModule]
ScorerBuilder = Callable[[AppConfig, RunFolder], list[Callback]]

LIGHTNINGS_LOG_EVERY_N_STEPS = 50

# As shells have it: 128 and the signal's number.
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class RunStopped(Exception):  # noqa: N818  not an error
    """A signal ended the run before its time."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def fit(cfg: AppConfig, build_model: ModelBuilder, build_scorers: ScorerBuilder) -> RunFolder:
    """Train as `cfg` says, from the run's last checkpoint if it has one; return the run's folder.

    The folder is made, or its config.yaml replaced, when training begins: what is refused before changes nothing.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    folder = RunFolder.of(cfg)
    checkpoint = folder.checkpoint_to_resume(cfg.exp_manager)
    seed_everything(cfg.seed, workers=True, verbose=False)
    jsonl = JsonlLogger(folder.metrics)
    callbacks = [*_callbacks(cfg, folder, jsonl), *build_scorers(cfg, folder)]
    callbacks += build_checkpoints(cfg.exp_manager, folder, cfg.model.scoring_asr not in (None, "none"))
    trainer = build_trainer(
        cfg.trainer,
        loggers=build_loggers(cfg.exp_manager, jsonl),
        callbacks=callbacks,
        root_dir=str(folder.path),
    )
    model = build_model(cfg)
    say(f"run folder {folder.path}" + (f", resuming from {checkpoint}" if checkpoint else ""))
    try:
        with telling_other_models(checkpoint, model):
            trainer.fit(model, DuplexDataModule(cfg.data), ckpt_path=checkpoint)
    except SystemExit as error:  # Lightning ends Ctrl-C with exit code 1, and SIGTERM with 0, as if all were done
        code = EXIT_SIGTERM if isinstance(error, SIGTERMException) else EXIT_SIGINT
        raise RunStopped(_stopped(trainer, folder), code) from error
    if folder.path.is_dir():  # a checkpoint that is at max_steps already, given to a new run, trains nothing
        rank_zero_only(write_report)(folder.path)
    rank_zero_only(print_summary)(folder, trainer)
    return folder


def _stopped(trainer: Trainer, folder: RunFolder) -> str:
    last = folder.last_checkpoint
    start = f"from {last}, as it was last saved" if whole_path(last).exists() else "at step 0, as nothing was saved yet"
    return f"stopped at step {trainer.global_step}; the same command goes on {start}"


def _callbacks(cfg: AppConfig, folder: RunFolder, jsonl: JsonlLogger) -> list[Callback]:
    callbacks: list[Callback] = [
        RunFolderBegins(folder, cfg),
        StepSeed(cfg.seed),
        MetricsFollowSteps(jsonl),
        AudioThroughput(cfg.data.source_sample_rate, log_steps(cfg.trainer)),
    ]
    callbacks += progress_bars(cfg.trainer)
    if cfg.exp_manager.max_time_per_run is not None:
        callbacks.append(RunTimer(_duration(cfg.exp_manager.max_time_per_run)))
    return callbacks


def progress_bars(cfg: TrainerConfig) -> list[Callback]:
    """Return the bar of a terminal, or the lines of a log file, unless they are turned off."""
    if cfg.enable_progress_bar is False:
        return []
    return [BarProgress() if sys.stderr.isatty() else LineProgress(log_steps(cfg))]


def log_steps(cfg: TrainerConfig) -> int:
    """Return the number of steps between two log lines."""
    return max(cfg.log_every_n_steps or LIGHTNINGS_LOG_EVERY_N_STEPS, 1)


def _duration(max_time: object) -> str:
    if not isinstance(max_time, str) or len(max_time.split(":")) != 4:
        raise ValueError(
            f'exp_manager.max_time_per_run is {max_time!r}: give DD:HH:MM:SS in quotes, such as "00:03:50:00"'
        )
    return max_time


@contextmanager
def telling_other_models(checkpoint: Path | None, model: LightningModule) -> Iterator[None]:
    """Say of a checkpoint that doesn't fit `model` what differs.

    Raises:
        ValueError: in place of torch's list of all names.
    """
    try:
        yield
    except RuntimeError as error:
        if checkpoint is None or "loading state_dict" not in str(error):
            raise
        state = AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
        raise ValueError(
            f"checkpoint {checkpoint} is of another model: {explain_mismatch(state, model.state_dict())}."
            " Use the config it was trained with, or start anew with another name=..."
        ) from error


@rank_zero_only
def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, of all processes once."""
    print(text, flush=True, file=stream)
