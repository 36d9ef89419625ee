"""NeMo 3.0's DuplexS2SModel, as its own recipe trains it in bf16-true."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.side import CLIP_NORM, Opener, Side, wrapped
from s2s_model.dtypes import default_dtype

OPTIMIZER = {"foreach": True}  # as its s2s_duplex.yaml has it


class NemoSide(Side):
    """Every frame encodes with the codec: it knows no stored codes."""

    name = "NeMo"

    @classmethod
    def build(cls, section: dict[str, Any], device: torch.device, dtype: torch.dtype) -> NemoSide:
        """Draw weights on the device, which is faster."""
        from nemo.collections.speechlm2.models import DuplexS2SModel

        torch.manual_seed(0)
        with device:
            model = DuplexS2SModel(section)
        return cls(model.to(device), device, dtype)

    def state(self) -> dict[str, Tensor]:
        """The float32 weights, on the host."""
        return {name: value.detach().cpu() for name, value in self.model.state_dict().items()}

    def cast(self) -> None:
        """As Lightning's bf16-true with NeMo's setup_audio_codec, which keeps the codec in float32."""
        codec = self.model.audio_codec
        del self.model.audio_codec
        self.model.to(self.dtype)
        self.model.audio_codec = codec

    def make_optimizer(self) -> None:
        self._optimizer = self.model.configure_optimizers()["optimizer"]

    def loss(self, batch: dict[str, Any]) -> Tensor:
        loss: Tensor = self.model.training_step(batch, 0)["loss"]
        return loss

    def update(self) -> None:
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def forget(self) -> None:
        self.model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def codes(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        codes_BKT, lens_B = self.model.audio_codec.encode(
            audio=batch["target_audio"], audio_len=batch["target_audio_lens"]
        )
        return codes_BKT.transpose(1, 2), lens_B

    @torch.inference_mode()
    def validate(self, batches: Sequence[dict[str, Any]]) -> None:
        """What `validation_step` does but for scoring: it generates, and computes no loss."""
        self.model.eval()
        with default_dtype(self.dtype):
            for batch in batches:
                self.model.offline_inference(batch["source_audio"], batch["source_audio_lens"])

    @contextmanager
    def marked(self, open_range: Opener) -> Iterator[None]:
        model = self.model
        parts = [
            (model.perception, "forward", "perception"),
            (model.audio_codec, "encode", "codec"),
            (model.llm, "forward", "LLM"),
            (model.lm_head, "forward", "heads and loss"),
            (model.audio_head, "forward", "heads and loss"),
            (torch.nn.functional, "cross_entropy", "heads and loss"),
        ]
        with ExitStack() as stack:
            for owner, method, part in parts:
                stack.enter_context(wrapped(owner, method, partial(open_range, part)))
            yield
