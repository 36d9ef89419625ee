"""The network that a run trains, built of tensors without data: shapes and dtypes, and no memory."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from s2s_model.channels import SpeechTokens
from s2s_model.config import ModelConfig
from s2s_model.dtypes import default_dtype
from s2s_model.freezing import freeze
from s2s_model.llm import hidden_size, load_llm
from s2s_model.lora import inject_lora
from s2s_model.model_section import without_weights
from s2s_model.network import DuplexNetwork, as_model_config
from s2s_model.perception import build_perception


@dataclass(frozen=True)
class CodecSizes:
    """What the network's shape takes from a codec; `parameters` None: it wasn't loaded."""

    num_codebooks: int  # K
    codebook_size: int
    parameters: int | None = None


class UnloadedNetwork(DuplexNetwork):
    """The network that a run trains, of tensors without data, without tokenizer and codec.

    Its parameters are on meta at first, tied ones tied, to be counted; `materialise` makes them fake ones of the CPU.
    """

    def __init__(self, config: ModelConfig, codec: CodecSizes, frame_length_s: float, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        # A fused kernel of another package keeps what SDPA keeps, and the package may not be here.
        self.cfg = replace(
            as_model_config(without_weights(asdict(config))),
            attn_implementation="eager" if config.attn_implementation == "eager" else None,
        )
        self.frame_length_s = frame_length_s
        self.audio_codec: Any = codec
        self.speech = SpeechTokens(codec.codebook_size)
        with torch.device("meta"):
            self._build_llm()
            self._build_speech_channel()
        with default_dtype(torch.float32):
            self.perception = build_perception(self.cfg, hidden_size(self.llm), frame_length_s)
        _replace_tensors(self.perception, dtype)
        # It looks at lengths, and keeps nothing.
        self.perception.spec_augmentation = None  # type: ignore[assignment]
        freeze(
            self,
            self._of_parts_here(self.cfg.freeze_params),
            self._of_parts_here(self._kept_from_freezing()),
            [],
            reopen="llm." if self.cfg.lora is not None else None,
        )
        self.train()

    def _build_llm(self, dtype: torch.dtype | None = None) -> None:
        self.llm = load_llm(
            self.cfg.pretrained_llm, pretrained_weights=False, attn_implementation=self.cfg.attn_implementation
        )
        if self.cfg.predict_user_text:
            V, H = self.llm.get_input_embeddings().weight.shape
            self.asr_head = nn.Linear(H, V, bias=getattr(self.llm.get_output_embeddings(), "bias", None) is not None)
            self.embed_asr_tokens = nn.Embedding(V, H)
        if self.cfg.lora is not None:
            inject_lora(self.llm, self.cfg.lora)

    def _of_parts_here(self, patterns: list[str]) -> list[str]:
        """The patterns without those of the codec alone, whose parameters aren't here."""
        names = [name for name, _ in self.named_parameters()]
        return [p for p in patterns if "audio_codec" not in p or any(re.match(p, name) for name in names)]

    def materialise(self) -> None:
        """Give the parameters the device of their inputs."""
        for name, child in self.named_children():
            if name != "perception":
                _replace_tensors(child)
        self._code_offsets = torch.zeros(self._code_offsets.shape, dtype=torch.int64)
        if self._codebook_weights is not None:
            self._codebook_weights = torch.zeros(self._codebook_weights.shape)

    @property
    def _text_ids(self) -> tuple[int, int, int]:
        return 0, 1, 2


def _replace_tensors(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Put fake tensors of the CPU in place of all: `Module.to` can't, as they are of another type.

    With `dtype`, floating ones become of it; features (`preprocessor`) are computed in float32 all the same.
    """
    for path, child in module.named_modules():
        to = None if path.startswith("preprocessor") else dtype
        for name, parameter in child._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=to or parameter.dtype)
                child._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in child._buffers.items():
            if buffer is not None:
                cast = to if buffer.is_floating_point() else None
                child._buffers[name] = torch.zeros(buffer.shape, dtype=cast or buffer.dtype)
