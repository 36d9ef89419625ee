"""Real training steps on batches that may be too large for the device."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call

from s2s_data.synthetic_batch import Bin
from s2s_train.calibrate_memory import GIB, Memory, is_out_of_memory

OPTIMIZER_STEPS = 2  # at each size: the second one meets what the first left
SLACK = 1.01  # on what smaller sizes foretell
ROUNDING = 1.001  # a GPU's allocator rounds its limit


@dataclass(frozen=True)
class Trial:
    """What the steps at one size took: the largest over ranks."""

    fits: bool
    peak_bytes: int = 0
    activations_bytes: int = 0  # the peak before the optimizer's step, which grows with the batch
    step_s: float = 0.0


class Trials:
    """Runs a trainer's own steps: its strategy, precision, clipping, accumulation and optimizer.

    On one GPU a step beyond the limit raises a real out-of-memory error, which is caught. Among several devices one
    that failed alone would leave the others waiting for it: there the limit is compared with the largest peak of any
    rank, and what smaller sizes foretell to be beyond it isn't tried. On a CPU it isn't, either.

    Args:
        trainer: at the start of training.
        memory: of its device.
        make_batch: a batch of so many dialogues of a bin.
    """

    def __init__(self, trainer: Trainer, memory: Memory, make_batch: Callable[[int, Bin], Mapping[str, Any]]) -> None:
        self._trainer = trainer
        self._memory = memory
        self._make_batch = make_batch
        self._activations_bytes = 0
        self._is_alone = isinstance(trainer.strategy, SingleDeviceStrategy)
        self._has_to_foretell = not (self._is_alone and memory.refuses_cleanly)
        self._done: dict[Bin, dict[int, Trial]] = {}

    def note_activations(self) -> None:
        """Take the peak of forward and backward; comes before each optimizer step."""
        self._activations_bytes = self._memory.peak_bytes()

    def of(self, longest: Bin, size: int) -> Trial:
        """Return the trial of `size` dialogues, run or foretold to fail.

        Raises:
            ValueError: a device among several ran out of memory.
        """
        done = self._done.setdefault(longest, {})
        if size not in done:
            if self._has_to_foretell and _foretold(done, size) > self._memory.limit_bytes:
                return Trial(fits=False)
            done[size] = self._run_limited(longest, size) if self._is_alone else self._run_among(longest, size)
        return done[size]

    def first_size(self, guess: int) -> int:
        """Return where to begin: at 1 where no size may be tried that smaller ones foretell nothing of."""
        return 1 if self._has_to_foretell else max(guess, 1)

    def _run_limited(self, longest: Bin, size: int) -> Trial:
        try:
            return self._memory.run_limited(lambda: self._run(longest, size))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Behind the handler: while it runs, the error's frames keep what they refer to.
        self._clean_up()
        return Trial(fits=False)

    def _run_among(self, longest: Bin, size: int) -> Trial:
        try:
            mine = self._run(longest, size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(
                f"rank {self._trainer.global_rank} ran out of memory at {size} dialogues of {longest.duration_s:g} s,"
                f" below the limit of {self._memory.limit_bytes / GIB:.1f} GiB: give a smaller --memory-share"
            ) from error
        largest = torch.tensor(
            [mine.peak_bytes, mine.activations_bytes, mine.step_s], dtype=torch.float64, device=self._device
        )
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        peak, activations, step_s = largest.tolist()
        return Trial(peak <= ROUNDING * self._memory.limit_bytes, int(peak), int(activations), step_s)

    def _run(self, longest: Bin, size: int) -> Trial:
        batch = self._make_batch(size, longest)
        self._clean_up()
        trainer = self._trainer
        step_s = 0.0
        for _ in range(OPTIMIZER_STEPS):
            began = time.perf_counter()
            for index in range(trainer.accumulate_grad_batches):
                _run_batch(trainer, batch, index)
            self._synchronize()
            step_s = (time.perf_counter() - began) / trainer.accumulate_grad_batches
        peak = self._memory.peak_bytes()
        # A CPU's address space can have room that its memory hasn't.
        return Trial(peak <= ROUNDING * self._memory.limit_bytes, peak, self._activations_bytes, step_s)

    def _clean_up(self) -> None:
        self._trainer.lightning_module.zero_grad(set_to_none=True)
        self._trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()  # accumulation begins anew
        self._memory.reset()

    @property
    def _device(self) -> torch.device:
        return self._trainer.strategy.root_device

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def smallest_of_ranks(limit_bytes: int, trainer: Trainer) -> int:
    """Return the limit of the rank with the least room: ranks that saw different ones would part in the search."""
    if trainer.world_size == 1:
        return limit_bytes
    smallest = torch.tensor(limit_bytes, dtype=torch.int64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
    return int(smallest)


def _run_batch(trainer: Trainer, batch: Mapping[str, Any], index: int) -> None:
    """What Lightning's training loop does with a batch, less callbacks and schedulers (checked with 2.5.6)."""
    loop = trainer.fit_loop.epoch_loop
    moved = trainer.precision_plugin.convert_input(dict(batch))
    moved = call._call_strategy_hook(trainer, "batch_to_device", moved, dataloader_idx=0)
    loop.batch_progress.increment_ready()
    trainer._logger_connector.on_batch_start(moved)
    call._call_lightning_module_hook(trainer, "on_train_batch_start", moved, index)
    kwargs = loop._build_kwargs(OrderedDict(), moved, index)
    loop.automatic_optimization.run(trainer.optimizers[0], index, kwargs)
    call._call_lightning_module_hook(trainer, "on_train_batch_end", None, moved, index)


def _foretold(done: Mapping[int, Trial], size: int) -> float:
    """Bytes that `size` dialogues will take before the optimizer's step, by the line through the two largest sizes.

    Zero where there are no two; the search then tries 1 and 2.
    """
    if len(done) < 2:
        return 0.0
    (smaller, low), (larger, high) = sorted(done.items())[-2:]
    slope = (high.activations_bytes - low.activations_bytes) / (larger - smaller)
    return SLACK * (high.activations_bytes + slope * (size - larger))
