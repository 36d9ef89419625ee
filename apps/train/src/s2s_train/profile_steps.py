"""Looks into chosen training steps: torch's trace, the GPU's memory, ranges for Nsight."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from s2s_train.profile_config import ProfileConfig, check_steps
from s2s_train.profile_ranges import PREFIX, STEPS, marked_parts, nvtx_range
from s2s_train.profile_trace import GPU_IDLE, StepTimes, read_trace

logger = logging.getLogger(__name__)

MAX_MEMORY_EVENTS = 200_000
WIDTH = 120  # where the output is no terminal


class StepProfiler(Callback):
    """Profiles the steps of `cfg.steps`, and leaves its files in `folder`; every rank its own.

    From the end of the step before the first to the end of the last: waiting for data and logging are within.

    Args:
        cfg: with steps.
        folder: made if it isn't there.

    Raises:
        ValueError: the steps mean nothing, or ask for a GPU's traits where there is none.
    """

    def __init__(self, cfg: ProfileConfig, folder: Path) -> None:
        assert cfg.steps is not None
        self.steps = check_steps(cfg.steps)
        self.times: StepTimes | None = None  # when done
        self._cfg = cfg
        self._folder = folder
        self._open = ExitStack()
        self._trace: profile | None = None
        self._is_open = False
        self.is_done = False
        if (cfg.memory or cfg.nvtx) and not torch.cuda.is_available():
            asked = "memory" if cfg.memory else "nvtx"
            raise ValueError(f"profiling with {asked} needs a GPU, and torch sees none here: leave it out")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, if the first step comes first."""
        if trainer.global_step > self.steps.start:
            logger.warning("steps %s to profile: the run goes on from step %d", list(self.steps), trainer.global_step)
        self._begin_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin behind the step before the first; end behind the last."""
        if self._is_open and trainer.global_step >= self.steps.stop:
            self._end(trainer)
        elif not self._is_open:
            self._begin_if_due(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave model and trainer as they were."""
        self._open.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End early where training does; nothing is reported of half of the steps."""
        self._open.close()

    def _begin_if_due(self, trainer: Trainer, model: LightningModule) -> None:
        # A batch that only accumulates gradients comes here at the same step again.
        if trainer.global_step != self.steps.start or self.is_done:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        on_gpu = torch.cuda.is_available() and trainer.strategy.root_device.type == "cuda"
        if self._cfg.memory:
            torch.cuda.memory._record_memory_history(max_entries=MAX_MEMORY_EVENTS)
            self._open.callback(torch.cuda.memory._record_memory_history, enabled=None)
        if on_gpu:
            torch.cuda.synchronize()
        if self._cfg.nvtx:
            torch.cuda.profiler.start()
            self._open.callback(torch.cuda.profiler.stop)
        else:
            activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
            self._trace = self._open.enter_context(profile(activities=activities, acc_events=True))
        open_range = nvtx_range if self._cfg.nvtx else record_function
        self._open.enter_context(open_range(PREFIX + STEPS))
        self._open.enter_context(marked_parts(trainer, model, open_range))
        if on_gpu:
            self._open.callback(torch.cuda.synchronize)  # the first to happen: the last step's kernels count
        self._is_open = True

    def _end(self, trainer: Trainer) -> None:
        rank = trainer.global_rank
        if self._cfg.memory:
            torch.cuda.synchronize()
            torch.cuda.memory._dump_snapshot(str(self._folder / f"memory.rank{rank}.pickle"))
        self._open.close()
        self._is_open, self.is_done = False, True
        if self._trace is None:
            return
        path = self._folder / f"trace.rank{rank}.json.gz"
        self._trace.export_chrome_trace(str(path))
        self._trace = None
        self.times = read_trace(path, len(self.steps))
        if rank == 0:
            print_times(self.times, self.steps, path)


def print_times(times: StepTimes, steps: range, path: Path) -> None:
    """Print the table of parts, and where the trace is."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    where = "GPU" if times.on_gpu else "CPU"
    table = Table(title=f"steps {steps.start} to {steps.stop - 1}: where the {where}'s time goes")
    for column in ("part", "ms a step", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, spent_ms in times.parts_ms.items():
        table.add_row(part, f"{spent_ms:.2f}", f"{spent_ms / times.step_ms:.1%}")
    table.add_section()
    table.add_row("step", f"{times.step_ms:.2f}", "100.0%")
    console.print(table)
    if times.hidden_communication_ms:
        console.print(f"communication beside computing, within the times above: {times.hidden_communication_ms:.2f} ms")
    if times.on_gpu:
        console.print(f"{GPU_IDLE}: the GPU waits for the host to launch")
    console.print(f"trace: {path} (open it at https://ui.perfetto.dev)", soft_wrap=True, markup=False)
