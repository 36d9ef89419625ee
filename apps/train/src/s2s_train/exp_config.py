"""The `exp_manager` section: where a run is kept, what is logged, when it is saved. Names as in NeMo's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class CheckpointParams:
    """Which checkpoints are kept beside `last.ckpt`."""

    filename: str = "{step}"  # of the best ones, from metrics: "{step}-{val_loss:.3f}"
    monitor: str | None = None  # by default val_asr_bleu with a model.scoring_asr, else val_loss
    mode: str | None = None  # max or min; by default min for losses and error rates, else max
    every_n_train_steps: int | None = None  # also write last.ckpt every so many optimizer steps
    every_n_epochs: int = 1  # look for a new best one at validations of every so many epochs
    save_top_k: int = 1  # how many of the best are kept; -1: all, 0: none
    save_last: bool = True  # keep last.ckpt, from which a run resumes
    always_save_nemo: bool = False  # True isn't supported: .nemo files
    save_nemo_on_train_end: bool = False  # True isn't supported: .nemo files


@dataclass
class ExpConfig:
    """Experiment management."""

    exp_dir: str | None = None  # folder of runs; the run is exp_dir/name. By default runs/
    explicit_log_dir: str | None = None  # the run's own folder; goes before exp_dir
    name: str | None = None  # the run's name, where the top-level `name` isn't given
    resume_if_exists: bool = True  # go on from the folder's last checkpoint
    resume_ignore_no_checkpoint: bool = True  # start anew where resume_if_exists finds none; else an error
    resume_from_checkpoint: str | None = None  # start from this file when the folder has no checkpoint
    create_checkpoint_callback: bool = True  # save checkpoints
    checkpoint_callback_params: CheckpointParams = field(default_factory=CheckpointParams)
    max_time_per_run: Any = None  # "DD:HH:MM:SS": save and stop after this time; a resumed run has it anew
    requeue: Any = "auto"  # on SIGTERM or SIGUSR1 put the SLURM job back in its queue; auto: if it is one; true, false
    hang_timeout_s: float = 1800.0  # end the job, with its stacks, when nothing goes on for so long; 0: never
    create_tensorboard_logger: bool = False  # log to RUN/tensorboard
    summary_writer_kwargs: dict[str, Any] = field(default_factory=dict)  # of the TensorBoard logger
    create_csv_logger: bool = False  # keep RUN/metrics.csv, the table of metrics.jsonl, too
    create_wandb_logger: bool = False  # log to Weights & Biases
    wandb_logger_kwargs: dict[str, Any] = field(default_factory=dict)  # project, name, resume, offline, ...
    use_datetime_version: bool = True  # without effect: a date in the folder's name would prevent resuming
