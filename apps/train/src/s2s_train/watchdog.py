"""Ends a job that hangs, and shows where."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

EXIT_HANG = 124  # as `timeout` has it


class Watchdog(Callback):
    """Ends this process when nothing has gone on for `timeout_s`, with the stacks of all its threads.

    Each process watches itself: where one hangs, those that wait for it hang as well. The end is `os._exit` from a
    thread, since the main thread is in a collective and won't come back. As a context manager it watches what is
    done within.

    Args:
        folder: the run's, for hang-rank<N>.txt.
        timeout_s: seconds without a sign of life; 0 watches nothing.

    Raises:
        ValueError: a negative time.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        if timeout_s < 0:
            raise ValueError(f"exp_manager.hang_timeout_s is {timeout_s:g}: give seconds, or 0 to never end a run")
        self._folder = folder
        self._timeout_s = timeout_s
        self._seen = (time.monotonic(), "starting")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._sees("starting")
        if self._timeout_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._timeout_s:
            self._thread.join()

    # --- signs of life ---------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A sign of life."""
        self._sees("reading the first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A sign of life."""
        self._sees(f"in the step after {trainer.global_step}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """A sign of life."""
        self._sees(f"after step {trainer.global_step}, before the next batch")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A sign of life."""
        self._sees(f"starting the validation at step {trainer.global_step}")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A sign of life."""
        self._sees(f"in batch {batch_idx} of the validation at step {trainer.global_step}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A sign of life."""
        self._sees(f"after batch {batch_idx} of the validation at step {trainer.global_step}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A sign of life."""
        self._sees(f"after the validation at step {trainer.global_step}")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A sign of life."""
        self._sees(f"saving step {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A sign of life."""
        self._sees("ending the run")

    def _sees(self, what: str) -> None:
        self._seen = (time.monotonic(), what)

    # --- the thread ------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        pause_s = min(5.0, self._timeout_s / 4)
        last_look = time.monotonic()
        while not self._closed.wait(pause_s):
            now = time.monotonic()
            if now - last_look > self._timeout_s / 2:  # the whole process stood still: suspended, and goes on now
                self._sees(self._seen[1])
            last_look = now
            seen, what = self._seen
            if now - seen > self._timeout_s:
                self._end(now - seen, what)

    def _end(self, quiet_s: float, what: str) -> None:
        rank = getattr(rank_zero_only, "rank", 0)
        said = (
            f"rank {rank} hangs: for {quiet_s:.0f} s nothing went on, {what} (exp_manager.hang_timeout_s is"
            f" {self._timeout_s:g}); its stacks are below and in {self._folder}/hang-rank{rank}.txt\n"
        )
        try:
            self._show(said, 2)
            with contextlib.suppress(OSError):  # a full or hanging disk must not keep the process
                self._folder.mkdir(parents=True, exist_ok=True)
                with (self._folder / f"hang-rank{rank}.txt").open("w") as file:
                    self._show(said, file.fileno())
        finally:
            os._exit(EXIT_HANG)

    @staticmethod
    def _show(said: str, descriptor: int) -> None:
        os.write(descriptor, said.encode())
        faulthandler.dump_traceback(descriptor, all_threads=True)
