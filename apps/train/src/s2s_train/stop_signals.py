"""What asks a run to stop before its end: a signal, or the time it was given."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from dataclasses import asdict
from types import FrameType
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TIME_IS_UP = 1  # beside signal numbers; SIGHUP has this one, and isn't caught

# One Ctrl-C reaches a process twice under torchrun, from the terminal and from torchrun: that is not a second one.
_SAME_CTRL_C_S = 1.0


class StopSignals:
    """Notes a signal, and tells the Trainer to stop when all processes have agreed to (`StopTogether`).

    It stands in for Lightning's signal connector (2.5.6), whose handlers do a broadcast in whatever moment the
    signal comes, wait for rank 0's signal alone, and save SLURM checkpoints of their own.

    Args:
        max_time_s: seconds from now on after which the run has to stop; None: no limit.
    """

    def __init__(self, max_time_s: float | None = None) -> None:
        self.received_sigterm = False  # Lightning's name: it ends the run behind the step that finds this true
        self.agreed = 0  # what all processes stop for: a signal's number, or TIME_IS_UP
        self._ends = None if max_time_s is None else time.monotonic() + max_time_s
        self._signal = 0
        self._interrupted = 0.0
        self._pid = 0
        self._before: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Make `trainer` ask this object, not Lightning's."""
        self._trainer = trainer
        trainer._signal_connector = self  # type: ignore[assignment]
        # A broadcast and a wait for the device each step, which tell nothing that isn't agreed on already.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    @property
    def asked(self) -> int:
        """What asks this process to stop: a signal's number, TIME_IS_UP, or 0."""
        if self._signal:
            return self._signal
        return TIME_IS_UP if self._ends is not None and time.monotonic() >= self._ends else 0

    def agree(self, reason: int) -> None:
        """Stop behind this step."""
        self.agreed = reason
        self.received_sigterm = True

    def register_signal_handlers(self) -> None:
        """Take the signals; the Trainer calls it when all is restored and training begins."""
        assert self._trainer is not None
        let_owed_validation_run(self._trainer)
        if threading.current_thread() is threading.main_thread():
            self._pid = os.getpid()
            self._before = {number: signal.signal(number, self._on_signal) for number in STOPPING_SIGNALS}

    def teardown(self) -> None:
        """Give the signals back; the Trainer calls it at its end.

        Not behind a signal: the process is about to end, and a second one mustn't keep its job from being requeued.
        """
        if self._signal:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a data worker, forked from this process, works on until it is closed
            return
        if number == signal.SIGINT and self._is_second_interrupt():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if not self._signal:
            self._signal = number
            again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
            _write(f"{signal.Signals(number).name}: the run stops behind this batch and saves{again}\n")

    def _is_second_interrupt(self) -> bool:
        now = time.monotonic()
        first, self._interrupted = self._interrupted, self._interrupted or now
        return bool(first) and now - first > _SAME_CTRL_C_S


def owe_validation(trainer: Trainer) -> None:
    """Make a checkpoint that is saved in validation say that none of it was done: a resumed run does it anew.

    That is the state in which Lightning 2.5.6 takes a validation to be cut off in its first batch.
    """
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    progress.reset()
    progress.increment_ready()
    progress.increment_started()


def owes_validation(trainer: Trainer) -> bool:
    """Whether the checkpoint that was restored was saved in validation."""
    total = asdict(trainer.fit_loop.epoch_loop.val_loop.batch_progress.total)
    return bool(trainer.fit_loop.restarting and total["started"] == total["processed"] + 1)


def let_owed_validation_run(trainer: Trainer) -> None:
    """Lift max_steps by one where a run was cut in its last validation: Lightning would do nothing at max_steps."""
    if owes_validation(trainer) and trainer.global_step == trainer.max_steps:
        trainer.fit_loop.epoch_loop.max_steps += 1


def seconds(max_time_per_run: object) -> float | None:
    """Return the seconds of `exp_manager.max_time_per_run`, None without a limit.

    Raises:
        ValueError: it isn't DD:HH:MM:SS.
    """
    if max_time_per_run is None:
        return None
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d):(\d\d)", max_time_per_run) if isinstance(max_time_per_run, str) else None
    if found is None:
        raise ValueError(
            f'exp_manager.max_time_per_run is {max_time_per_run!r}: give DD:HH:MM:SS in quotes, such as "00:03:50:00"'
        )
    days, hours, minutes, secs = (int(part) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + secs)


@rank_zero_only
def _write(text: str) -> None:
    os.write(2, text.encode())  # a print here could meet one that the signal came into
