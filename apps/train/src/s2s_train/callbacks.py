"""What a run does when training begins, its seeds and throughput, and the clock that ends it in time."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer

from s2s_train.config import AppConfig
from s2s_train.data_module import data_parallel_place
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


class AudioThroughput(Callback):
    """Logs `audio_s_per_s`: seconds of dialogue trained on per second, over all data parallel ranks.

    The mean since the log step before. Waiting for data counts; validation and saves don't.
    """

    def __init__(self, source_sample_rate: int, every_n_steps: int) -> None:
        self._source_sample_rate = source_sample_rate
        self._every_n_steps = every_n_steps
        self._batch_started: float | None = None
        self._lens: list[torch.Tensor] = []
        self._time_s = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, unless it runs since the batch before."""
        if self._batch_started is None:
            self._batch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at log steps alone, since reading lengths makes the host wait for the device."""
        now = time.monotonic()
        self._lens.append(batch["source_audio_lens"])
        self._time_s += now - (self._batch_started or now)
        self._batch_started = now
        if trainer.global_step % self._every_n_steps == 0:
            audio_s = sum(int(lens_B.sum()) for lens_B in self._lens) / self._source_sample_rate
            rate = audio_s * data_parallel_place(trainer).num_ranks / max(self._time_s, 1e-9)
            pl_module.log("audio_s_per_s", rate, prog_bar=True, batch_size=1)
            self._lens, self._time_s = [], 0.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock until the next batch."""
        self._batch_started = None


class RunTimer(Timer):
    """Stops a run after a time that each resumed run has anew (Lightning's Timer counts over all)."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""
