"""What a model tells of itself so that it can be shared between devices."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class ModelParts:
    """The modules of a model by how they are shared.

    Attributes:
        body: the LLM without its heads, called with `inputs_embeds` [B, T, H].
        config: the body's Hugging Face config.
        layers: the body's repeated layers, first to last.
        embeddings: tables of tokens: modules that take ids and give [..., H].
        heads: matrices from [..., H] to logits.
        encoder: what turns audio into [B, T, H]: never tensor parallel.
        encoder_layers: its repeated layers.
        subsampling: what comes before these and costs as much.
    """

    body: nn.Module
    config: Any
    layers: list[nn.Module]
    embeddings: list[nn.Module]
    heads: list[nn.Module]
    encoder: nn.Module
    encoder_layers: list[nn.Module]
    subsampling: list[nn.Module] = field(default_factory=list)
