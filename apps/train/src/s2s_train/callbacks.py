"""What a run does when training begins, and its seeds."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from s2s_train.config import AppConfig
from s2s_train.data_module import data_parallel_place
from s2s_train.environment import write_environment
from s2s_train.run_folder import RunFolder


class RunFolderBegins(Callback):
    """Makes the run's folders and writes its config when training begins.

    By then the model is built, the checkpoint restored and the first batch read: a command that is refused before
    leaves the run as it was, and a run that never began leaves no folder.
    """

    def __init__(self, folder: RunFolder, cfg: AppConfig) -> None:
        self._folder = folder
        self._cfg = cfg

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, on rank 0."""
        if trainer.is_global_zero:
            self._folder.prepare(self._cfg)
            write_environment(self._folder.path)


class StepSeed(Callback):
    """Seeds each training step by (seed, data parallel rank, step): the generators' states, with nothing to save.

    A resumed run draws what the uncut one would have, on any mesh. SpecAugment, dither, dropout and hidden codes draw
    from torch's generators. Tensor parallel peers draw the same: where they compute the same, they must stay the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed torch on this rank."""
        place = (self._seed, data_parallel_place(trainer).rank, trainer.global_step, batch_idx)
        drawn = int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "little")
        torch.manual_seed(drawn)
        np.random.seed(drawn % 2**32)
        random.seed(drawn)
