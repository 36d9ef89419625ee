"""What the time before a run's first step went to."""

from __future__ import annotations

import time
from typing import Any

import psutil
from lightning.pytorch import Callback, LightningModule, Trainer


class StartUp(Callback):
    """Tells it on the screen once the first step is done.

    `imports` begin with the process, `set-up` is all between the model and the loader (devices, sharding, checkpoint)
    but for `sanity check`, `first batch` is the wait for the loader's workers, `step` the first batch with all that it
    compiles, as the host sees it.
    """

    def __init__(self) -> None:
        self._last = self._began = psutil.Process().create_time()
        self._parts: dict[str, float] = {}
        self._is_told = False
        self.mark("imports")

    def mark(self, part: str) -> None:
        """Name what the time since the mark before went to."""
        now = time.time()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation comes before training."""
        self.mark("set-up")

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It is over."""
        self.mark("sanity check")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What Lightning did before the loader is asked."""
        self.mark("set-up")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch is there."""
        if not self._is_told:
            self.mark("first batch")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell."""
        if self._is_told:
            return
        self.mark("step")
        self._is_told = True
        if trainer.is_global_zero:
            parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
            print(f"first step after {self._last - self._began:.1f} s: {parts}", flush=True)
