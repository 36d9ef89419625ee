"""The `trainer` section: every key of lightning.pytorch.Trainer, with Lightning's defaults.

Written out, so that a typo is found without importing Lightning (ten seconds on a busy machine); a test compares
the keys and defaults with Lightning's signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class TrainerConfig:
    """Arguments of lightning.pytorch.Trainer; what is an object there is a `{_target_: ...}` mapping here."""

    accelerator: Any = "auto"  # cpu, gpu, auto
    strategy: Any = "auto"  # a name of Lightning's (auto, ddp), or {_target_: class, **arguments}
    devices: Any = "auto"  # processes on each node, one a device; -1: all
    num_nodes: int = 1  # machines
    precision: Any = None  # 32-true (default), bf16-true, bf16-mixed, 16-mixed
    logger: Any = None  # False in NeMo's files; loggers are set under exp_manager
    callbacks: Any = None  # a list of {_target_: ...}, beside the app's own
    fast_dev_run: Any = False  # run so many batches of everything, and stop
    max_epochs: int | None = None  # stop after so many epochs of limit_train_batches
    min_epochs: int | None = None  # don't stop early before so many epochs
    max_steps: int = -1  # stop after so many optimizer steps; -1: no limit
    min_steps: int | None = None  # don't stop early before so many steps
    max_time: Any = None  # stop after DD:HH:MM:SS, counted over all runs that were resumed
    limit_train_batches: Any = None  # batches an "epoch"; training data has no end of its own
    limit_val_batches: Any = None  # batches of each validation set; 0: no validation
    limit_test_batches: Any = None  # unused by fit
    limit_predict_batches: Any = None  # unused by fit
    overfit_batches: Any = 0.0  # train and validate on so many batches again and again
    val_check_interval: Any = None  # training batches between validations
    check_val_every_n_epoch: int | None = 1  # null: val_check_interval counts over epochs
    num_sanity_val_steps: int | None = None  # validation batches run before training, to find errors early
    log_every_n_steps: int | None = None  # steps between lines of metrics.jsonl; 50 if not given
    enable_checkpointing: Any = None  # False in NeMo's files; see exp_manager.create_checkpoint_callback
    enable_progress_bar: bool | None = None  # False: no progress on the screen
    enable_model_summary: bool | None = None  # print the modules and their sizes
    accumulate_grad_batches: int = 1  # batches an optimizer step
    gradient_clip_val: float | None = None  # largest gradient norm
    gradient_clip_algorithm: str | None = None  # norm (default), value
    deterministic: Any = None  # True: only deterministic operations, an error where there is none
    benchmark: bool | None = None  # let cuDNN time its algorithms
    inference_mode: bool = True  # validation under torch.inference_mode
    use_distributed_sampler: bool = True  # without effect: s2s_data shares the data among ranks itself
    profiler: Any = None  # simple, advanced, pytorch, or {_target_: ...}
    detect_anomaly: bool = False  # torch's anomaly detection, slow
    barebones: bool = False  # turn everything off to measure Lightning's own cost
    plugins: Any = None  # a list of {_target_: ...}, beside the checkpoint writer
    sync_batchnorm: bool = False  # synchronise batch norm over processes
    reload_dataloaders_every_n_epochs: int = 0  # has to stay 0: the training data goes on over epochs
    default_root_dir: str | None = None  # unused: the run's folder is set under exp_manager
    model_registry: str | None = None  # Lightning's own registry of models
