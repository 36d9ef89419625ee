"""`fit`: build what the config says, train, report."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from s2s_eval.report import write_report
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_parallel.mismatch import explain_mismatch
from s2s_train.callbacks import RunFolderBegins, StepSeed
from s2s_train.checkpoints import LastCheckpoint, build_checkpoints
from s2s_train.config import AppConfig
from s2s_train.data_module import DuplexDataModule
from s2s_train.loggers import JsonlLogger, MetricsFollowSteps, build_loggers, finishing_wandb
from s2s_train.measuring import Measuring
from s2s_train.profile_steps import StepProfiler
from s2s_train.progress import BarProgress, LineProgress
from s2s_train.requeue import requeue, slurm_job, wants_requeue
from s2s_train.run_folder import RunFolder
from s2s_train.startup import StartUp
from s2s_train.stop_signals import TIME_IS_UP, StopSignals, seconds
from s2s_train.stop_together import StopTogether
from s2s_train.summary import print_summary
from s2s_train.trainer import build_trainer
from s2s_train.trainer_config import TrainerConfig
from s2s_train.watchdog import Watchdog

ModelBuilder = Callable[[AppConfig], LightningModule]
ScorerBuilder = Callable[[AppConfig, RunFolder], list[Callback]]

LIGHTNINGS_LOG_EVERY_N_STEPS = 50

EXIT_SIGNAL = 128  # and the signal's number, as shells have it


class RunStopped(Exception):  # noqa: N818  not an error
    """A signal ended the run before its time."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@finishing_wandb()
def fit(cfg: AppConfig, build_model: ModelBuilder, build_scorers: ScorerBuilder) -> RunFolder:
    """Train as `cfg` says, from the run's last checkpoint if it has one; return the run's folder.

    The folder is made, or its config.yaml replaced, when training begins: what is refused before changes nothing.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    start_up = StartUp()
    folder = RunFolder.of(cfg)
    checkpoint = folder.checkpoint_to_resume(cfg.exp_manager)
    to_requeue = wants_requeue(cfg.exp_manager.requeue)
    signals = StopSignals(seconds(cfg.exp_manager.max_time_per_run))
    watchdog = Watchdog(folder.path, cfg.exp_manager.hang_timeout_s)
    seed_everything(cfg.seed, workers=True, verbose=False)
    jsonl = JsonlLogger(folder.metrics)
    callbacks = [
        watchdog,
        start_up,
        *_callbacks(cfg, folder, jsonl),
        *build_scorers(cfg, folder),
        StopTogether(signals),
    ]
    callbacks += build_checkpoints(cfg.exp_manager, folder, cfg.model.scoring_asr not in (None, "none"))
    trainer = build_trainer(
        cfg.trainer,
        loggers=build_loggers(cfg.exp_manager, jsonl),
        callbacks=callbacks,
        root_dir=str(folder.path),
    )
    signals.attach(trainer)
    model = build_model(cfg)
    start_up.mark("model")
    say(f"run folder {folder.path}" + (f", resuming from {checkpoint}" if checkpoint else ""))
    try:
        with watchdog, telling_other_models(checkpoint, model):
            trainer.fit(model, DuplexDataModule(cfg.data), ckpt_path=checkpoint)
    except SIGTERMException as error:
        if signals.agreed != TIME_IS_UP:
            raise _stopped(trainer, folder, signals.agreed, to_requeue) from error
        say(_where_stopped(trainer, folder, "exp_manager.max_time_per_run is over"))
    except SystemExit as error:  # Ctrl-C before training began, which Lightning ends with exit code 1
        raise RunStopped("stopped by SIGINT before training began", EXIT_SIGNAL + signal.SIGINT) from error
    if folder.path.is_dir():  # a checkpoint that is at max_steps already, given to a new run, trains nothing
        rank_zero_only(write_report)(folder.path)
    rank_zero_only(print_summary)(folder, trainer)
    return folder


def _stopped(trainer: Trainer, folder: RunFolder, number: int, to_requeue: bool) -> RunStopped:
    """Requeue the job, if that is wanted, and return what to raise."""
    said = _where_stopped(trainer, folder, signal.Signals(number).name)
    if _is_lightnings_child(trainer):  # Lightning kills the main process for a child that fails
        return RunStopped(said, 0)
    job = slurm_job()
    if to_requeue and not any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks):
        return RunStopped(f"{said}; it isn't requeued, as last.ckpt is turned off", EXIT_SIGNAL + number)
    if not to_requeue or job is None or number == signal.SIGINT:
        return RunStopped(said, EXIT_SIGNAL + number)
    if not trainer.is_global_zero:
        return RunStopped(said, 0)
    say(f"{said}; asking SLURM to requeue job {job}")  # now: SLURM may end this process before it has answered
    refused = requeue(job)
    if refused:
        return RunStopped(f"job {job} isn't requeued: {refused}", EXIT_SIGNAL + number)
    return RunStopped(f"job {job} is requeued", 0)


def _where_stopped(trainer: Trainer, folder: RunFolder, why: str) -> str:
    last = folder.newest_checkpoint()
    start = f"from {last}, its last checkpoint" if last else "at step 0, as nothing was saved yet"
    return f"{why}: stopped at step {trainer.global_step}; the same command goes on {start}"


def _is_lightnings_child(trainer: Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and not trainer.is_global_zero


def _callbacks(cfg: AppConfig, folder: RunFolder, jsonl: JsonlLogger) -> list[Callback]:
    callbacks: list[Callback] = [
        RunFolderBegins(folder, cfg),
        StepSeed(cfg.seed),
        MetricsFollowSteps(jsonl),
        Measuring(cfg.data.source_sample_rate, log_steps(cfg.trainer)),
    ]
    if cfg.profile.steps is not None:
        callbacks.append(StepProfiler(cfg.profile, folder.path / "profile"))
    return callbacks + progress_bars(cfg.trainer)


def progress_bars(cfg: TrainerConfig) -> list[Callback]:
    """Return the bar of a terminal, or the lines of a log file, unless they are turned off."""
    if cfg.enable_progress_bar is False:
        return []
    return [BarProgress() if sys.stderr.isatty() else LineProgress(log_steps(cfg))]


def log_steps(cfg: TrainerConfig) -> int:
    """Return the number of steps between two log lines."""
    return max(cfg.log_every_n_steps or LIGHTNINGS_LOG_EVERY_N_STEPS, 1)


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
