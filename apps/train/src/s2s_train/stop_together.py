"""All processes stop behind the same step, whichever of them was asked to."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from s2s_train.checkpoints import LastCheckpoint, validation_follows
from s2s_train.stop_signals import TIME_IS_UP, StopSignals, owe_validation


class Agreement:
    """Tells each process what any of them was asked, without anyone waiting.

    What is told at one call is known to all at the next: the exchange (an all-reduce of one number on the CPU) runs
    beside the step between. One process alone knows at once.
    """

    def __init__(self, num_processes: int) -> None:
        self._group = dist.new_group(backend="gloo") if num_processes > 1 else None
        self._told = torch.zeros(1, dtype=torch.int32)
        self._exchange: dist.Work | None = None

    def exchange(self, asked: int) -> int:
        """Return what was asked of any process, 0 if nothing; all call it equally often."""
        if self._group is None:
            return asked
        known = self.finish()
        self._told.fill_(asked)
        self._exchange = dist.all_reduce(self._told, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return known

    def finish(self) -> int:
        """Wait for the exchange in progress and return what it says."""
        if self._exchange is None:
            return 0
        self._exchange.wait()
        self._exchange = None
        return int(self._told)


class StopTogether(Callback):
    """Stops the run behind an optimizer step, or between two batches of validation.

    A validation that is cut logs nothing, and the resumed run does it anew: its numbers are those of the uncut run.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals
        self._agreement: Agreement | None = None
        self._max_steps = -1
        self._has_stepped = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the processes' own line."""
        self._agreement = Agreement(trainer.world_size)
        self._max_steps = trainer.max_steps

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further than max_steps, where a validation was owed that the config has no more."""
        if trainer.global_step == self._max_steps and not validation_follows(trainer):
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Agree, where an optimizer step was done; Lightning logs it, LastCheckpoint saves it, and the run ends."""
        if trainer.fit_loop.epoch_loop._should_accumulate():  # what is accumulated isn't in a checkpoint
            return
        self._has_stepped = True
        asked = self._exchange()
        is_done = trainer.global_step == trainer.max_steps and not validation_follows(trainer)
        if asked and not is_done:
            self._signals.agree(asked)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Don't begin, if it was agreed to stop."""
        if _is_in_training(trainer):
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps
            if self._signals.agreed:
                _leave_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Agree."""
        if _is_in_training(trainer) and (asked := self._exchange()):
            self._signals.agree(asked)
            _leave_validation(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the line when nothing is under way on it."""
        assert self._agreement is not None
        self._agreement.finish()

    def _exchange(self) -> int:
        assert self._agreement is not None
        asked = self._signals.asked
        if asked == TIME_IS_UP and not self._has_stepped:  # runs too short for a validation would never get past it
            asked = 0
        return self._agreement.exchange(asked)


def _is_in_training(trainer: Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _leave_validation(trainer: Trainer) -> None:
    owe_validation(trainer)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.save_and_wait(trainer)
    raise SIGTERMException
