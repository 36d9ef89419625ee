"""Our model, as `fit` trains it in bf16-true."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.side import CLIP_NORM, Opener, Side
from s2s_model.dtypes import default_dtype
from s2s_model.from_nemo import _our_names
from s2s_model.weights import put_weights
from s2s_parallel.config import ParallelConfig
from s2s_train.measuring import flops_of_batch
from s2s_train.profile_ranges import PREFIX, marked_parts


class OurSide(Side):
    """Every hook that Lightning's loop calls in a step is called."""

    name = "ours"

    @classmethod
    def build(
        cls, section: dict[str, Any], parallel: ParallelConfig, device: torch.device, dtype: torch.dtype
    ) -> OurSide:
        """Draw weights on the device, which is faster."""
        from s2s_model import DuplexS2SModel

        torch.manual_seed(0)
        with device:
            model = DuplexS2SModel(section, parallel=parallel)
        side = cls(model.to(device), device, dtype)
        side.answering = {"compile": parallel.compile}  # type: ignore[misc]
        return side

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Take NeMo's weights."""
        renamed = _our_names(state, self.model)
        put_weights(self.model, {name: value.to(self.device) for name, value in renamed.items()}, "NeMo's model")

    def to_training_dtype(self) -> None:
        """Lay the model out as the trainer does: `parallel.compile` acts from here on."""
        self.model.configure_model()
        super().to_training_dtype()

    def cast(self) -> None:
        self.model.to(self.dtype)

    def make_optimizer(self) -> None:
        self._optimizer = self.model.configure_optimizers()["optimizer"]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        self._batch = batch
        self.model.on_train_batch_start(batch, 0)
        loss: Tensor = self.model.training_step(batch, 0)
        return loss

    def update(self) -> None:
        self.model.on_before_optimizer_step(self._optimizer)
        self.model.configure_gradient_clipping(self._optimizer, CLIP_NORM, "norm")
        self._optimizer.step()
        self.model.on_train_batch_end(None, self._batch, 0)

    def forget(self) -> None:
        self.model._window.close()
        self.model.zero_grad(set_to_none=True)

    def drop_graphs(self) -> None:
        if self.model._graphs is not None:
            self.model.graph()

    def codes(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        codes: tuple[Tensor, Tensor] = self.model.target_codes(batch)
        return codes

    @torch.inference_mode()
    def validate(self, batches: Sequence[dict[str, Any]]) -> None:
        """Losses, statistics, answers and the codec's ceiling."""
        self.model.eval()
        with default_dtype(self.dtype):
            self.model.on_validation_epoch_start()
            for i, batch in enumerate(batches):
                self.model.validation_step({"set": batch}, i)
            self.model.on_validation_epoch_end()

    @contextmanager
    def marked(self, open_range: Opener) -> Iterator[None]:
        graphs, self.model._graphs = self.model._graphs, None  # a replay has no parts
        no_loop: Any = SimpleNamespace(profiler=None)
        try:
            with marked_parts(no_loop, self.model, lambda name: open_range(name.removeprefix(PREFIX))):
                yield
        finally:
            self.model._graphs = graphs

    def flops(self, batch: Mapping[str, Any]) -> float:
        """Floating point operations of a training step that MFU counts."""
        count = flops_of_batch(self.model)
        assert count is not None
        B, T = batch["target_tokens"].shape
        return count(B, max(T - 1, 1)).model

    def bytes_of_step(self) -> int:
        """Bytes that AdamW moves: weights, gradients and two moments read, all but gradients written."""
        trained: int = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        return 7 * trained

    def bytes_of_frame(self) -> int:
        """Bytes of weights that a decoded frame reads: the LLM's blocks and the heads; embeddings are look-ups."""
        parts = self.model.parts()
        modules = [*parts.layers, *parts.heads]
        return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
