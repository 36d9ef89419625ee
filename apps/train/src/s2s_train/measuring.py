"""How fast training goes and what holds it up: audio a second, MFU, memory, and the wait for data.

Shapes: `B` dialogues of a batch, `T` its frames (80 ms).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from s2s_parallel.gpus import GIB, Gpu, gpu_of_device
from s2s_parallel.speed import StepFlops, mfu
from s2s_train.data_module import data_parallel_place

FlopsOfBatch = Callable[[int, int], StepFlops]


class Measuring(Callback):
    """Logs at each log step, as means since the one before:

    - `audio_s_per_s`: seconds of dialogue trained on per second: this data parallel rank's, times their number;
    - `data_wait_share`: the share of the time in which this process waited for a batch;
    - `memory_gib`: the most memory that this GPU's tensors took;
    - `mfu`: operations of forward and backward that the trained network needs, by `s2s_parallel.speed.flops_of_step` of
      the batches' padded sizes, per second, over the GPU's dense bf16 peak. What is computed again in backward and the
      codec don't count. Only where the GPU is in `s2s_parallel.gpus` and the model is ours.

    Waiting for data and saving count as time; validation doesn't.
    """

    def __init__(self, source_sample_rate: int, every_n_steps: int, gpu: Gpu | None = None) -> None:
        """`gpu` stands for the device's, whose peak is otherwise looked up by its name."""
        self._source_sample_rate = source_sample_rate
        self._every_n_steps = every_n_steps
        self._gpu = gpu
        self._flops: FlopsOfBatch | None = None
        self._clock = Clock()
        self._lens: list[torch.Tensor] = []
        self._num_flops = 0.0
        self._waited_s = 0.0  # while the clock ran, up to its last stop
        self._waited_before_s = 0.0  # by all that there was when the clock started
        self._step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look the GPU up and count the network's weights."""
        device = pl_module.device
        if self._gpu is None and device.type == "cuda":
            self._gpu = gpu_of_device(torch.cuda.get_device_name(device))
        self._flops = flops_of_batch(pl_module) if self._gpu is not None else None
        self._step = trainer.global_step
        self._forget(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock, unless it runs since the batch before."""
        if not self._clock.runs:
            self._waited_before_s = _waited_s(trainer)  # for the first batch: workers start
            self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at log steps alone, since reading lengths makes the host wait for the device."""
        self._lens.append(batch["source_audio_lens"])
        if self._flops is not None:
            B, T = batch["target_tokens"].shape
            self._num_flops += self._flops(B, max(T - 1, 1)).model
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if stepped and trainer.global_step % self._every_n_steps == 0:
            measured = self._measure(trainer) | _memory(pl_module.device)
            for name, value in measured.items():
                pl_module.log(name, value, batch_size=1)
            self._forget(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock until the next batch of training."""
        self._waited_s = self._waited(trainer)
        self._clock.stop()

    def _measure(self, trainer: Trainer) -> dict[str, float]:
        audio_s = sum(int(lens_B.sum()) for lens_B in self._lens) / self._source_sample_rate
        time_s = max(self._clock.total_s(), 1e-9)
        num_ranks = data_parallel_place(trainer).num_ranks
        measured = {
            "audio_s_per_s": audio_s * num_ranks / time_s,
            "data_wait_share": min(self._waited(trainer) / time_s, 1.0),
        }
        if self._gpu is not None and self._flops is not None:
            flops = StepFlops(llm=self._num_flops, encoder=0.0, recomputed=0.0)
            measured["mfu"] = mfu(flops, time_s, self._gpu, trainer.world_size // num_ranks)
        return measured

    def _waited(self, trainer: Trainer) -> float:
        """Seconds of the clock's in which training waited for batches."""
        return self._waited_s + (_waited_s(trainer) - self._waited_before_s if self._clock.runs else 0.0)

    def _forget(self, trainer: Trainer) -> None:
        self._lens, self._num_flops, self._waited_s = [], 0.0, 0.0
        self._waited_before_s = _waited_s(trainer)
        self._clock.restart()


class Clock:
    """Adds up time while it runs."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._added_s = 0.0

    @property
    def runs(self) -> bool:
        """Whether time is counted."""
        return self._since is not None

    def start(self) -> None:
        """Count from now on."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Keep what was counted, and count no more."""
        self._added_s = self.total_s()
        self._since = None

    def restart(self) -> None:
        """Forget what was counted; go on counting if it did."""
        self._added_s = 0.0
        self._since = None if self._since is None else time.monotonic()

    def total_s(self) -> float:
        """Seconds that were counted."""
        return self._added_s + (0.0 if self._since is None else time.monotonic() - self._since)


def flops_of_batch(model: Any) -> FlopsOfBatch | None:
    """Return what tells the operations of a batch of B dialogues and T frames; None for a model that isn't ours.

    The encoder counts 2 operations a weight and frame forward (6 if it is trained). Its first layers run at more than
    a frame's rate, so this is a little less than it does.
    """
    from dataclasses import replace

    from s2s_model.network import DuplexNetwork
    from s2s_model.sizes import work_of
    from s2s_parallel.speed import flops_of_step

    if not isinstance(model, DuplexNetwork):
        return None
    work = work_of(model, 1, model.frame_length_s * 2, 0.0)
    encoder_params = sum(p.numel() for p in model.perception.parameters() if p.ndim >= 2)

    def flops(B: int, T: int) -> StepFlops:
        forward = 2.0 * B * T * encoder_params
        return flops_of_step(replace(work, batch_size=B, num_frames=T, encoder_forward_flops=forward))

    return flops


def _waited_s(trainer: Trainer) -> float:
    """Seconds that training has waited for batches so far."""
    waited = getattr(getattr(trainer, "datamodule", None), "waited_s", 0.0)
    return float(waited)


def _memory(device: torch.device) -> dict[str, float]:
    return {"memory_gib": torch.cuda.max_memory_allocated(device) / GIB} if device.type == "cuda" else {}
