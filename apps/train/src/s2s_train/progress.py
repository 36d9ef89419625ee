"""Progress on the screen: a bar in a terminal, lines in a log file."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, TQDMProgressBar

from s2s_train.headline import headline_of_all

# Losses, then what tells how fast training goes and what holds it up.
_SHOWN = (
    "train_loss",
    "train_text_loss",
    "train_audio_loss",
    "audio_s_per_s",
    "mfu",
    "memory_gib",
    "padding_share",
    "data_wait_share",
)


class LineProgress(ProgressBar):
    """One line a log step, for output that isn't a terminal: a job's log file stays readable."""

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        self._every_n_steps = every_n_steps
        self._enabled = True
        self._last_step = 0
        self._pace = Pace()

    def disable(self) -> None:
        """Lightning turns progress off on all ranks but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Print again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where this part of the run started, for the time that remains."""
        self._pace.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print at log steps."""
        step, last = trainer.global_step, self._last_step
        self._last_step = step  # a batch that only accumulates gradients comes at the same step again
        if self._enabled and step % self._every_n_steps == 0 and step > max(last, self._pace.first_step):
            metrics = _shown(self.get_metrics(trainer, pl_module))
            print(f"step {step}{self._of_total(trainer, step)} | {metrics}", flush=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why nothing is printed for a while."""
        if self._enabled and not trainer.sanity_checking:
            print(f"step {trainer.global_step} | validating", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the validation's main figures."""
        if self._enabled and not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            print(f"step {trainer.global_step} | validated: {headline_of_all(metrics)}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The losses and measures too, and not the logger's version number."""
        return _shown_first(super().get_metrics(trainer, pl_module), trainer)

    def _of_total(self, trainer: Trainer, step: int) -> str:
        return "" if trainer.max_steps < 1 else f"/{trainer.max_steps} | {self._pace.remaining(trainer)} left"


class BarProgress(TQDMProgressBar):
    """Lightning's bar over an "epoch", with what LineProgress shows."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where this part of the run started, for the time that remains."""
        self._pace.start(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The losses and measures too, and the time that remains; not the logger's version number."""
        left = self._pace.remaining(trainer)
        return _shown_first(super().get_metrics(trainer, pl_module), trainer) | ({"left": left} if left else {})


class Pace:
    """How long the rest of a run takes, at the pace of this part of it, validations and all."""

    def __init__(self) -> None:
        self.first_step = 0
        self._started = 0.0

    def start(self, trainer: Trainer) -> None:
        """Training begins, or goes on, here."""
        self.first_step = trainer.global_step
        self._started = time.monotonic()

    def remaining(self, trainer: Trainer) -> str:
        """Return H:MM:SS to trainer.max_steps; nothing where there is none, or before the first step."""
        steps = trainer.global_step - self.first_step
        if trainer.max_steps < 1 or steps < 1:
            return ""
        remaining_s = int((time.monotonic() - self._started) / steps * (trainer.max_steps - trainer.global_step))
        return f"{remaining_s // 3600}:{remaining_s // 60 % 60:02}:{remaining_s % 60:02}"


def _shown_first(metrics: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    metrics.pop("v_num", None)
    logged = trainer.callback_metrics
    return {**{name: float(logged[name]) for name in _SHOWN if name in logged}, **metrics}


def _shown(metrics: dict[str, Any]) -> str:
    return " | ".join(f"{name} {float(value):.4g}" for name, value in metrics.items())
