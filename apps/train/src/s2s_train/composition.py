"""Which model and which scorers the app trains with: the one place that names their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

from s2s_eval.scoring import ValidationScoring
from s2s_model.duplex import DuplexS2SModel
from s2s_parallel.context_parallel import check_context_parallel
from s2s_parallel.parts import ModelParts
from s2s_parallel.tensor_parallel import check_sizes
from s2s_train.config import AppConfig, mesh_arguments
from s2s_train.free_sections import check_free_sections
from s2s_train.run_folder import RunFolder


def build_model(cfg: AppConfig) -> LightningModule:
    """Build the duplex model of `cfg.model`.

    Raises:
        ValueError: a key that no part takes, a part that can't be built, `data` brings audio at another rate than the
            model hears or speaks, or the LLM can't be shared between as many devices.
    """
    check_free_sections(cfg)
    llm_dtype = torch.bfloat16 if cfg.trainer.precision == "bf16-true" else None
    model = DuplexS2SModel(cfg.model, cfg.data.frame_length, cfg.parallel, llm_dtype)
    for key in ("source_sample_rate", "target_sample_rate"):
        configured, needed = getattr(cfg.data, key), getattr(model, key)
        if configured != needed:
            raise ValueError(f"data.{key} is {configured} Hz, but the model's is {needed} Hz: set data.{key}={needed}")
    _check_sharing(model.parts(), mesh_arguments(cfg.trainer.strategy) or {}, cfg.parallel.uneven_heads)
    return model


def _check_sharing(parts: ModelParts, mesh: Mapping[str, Any], uneven_heads: str) -> None:
    """Refuse what the LLM can't do before processes are started for it."""
    size = mesh.get("tensor_parallel_size")
    if isinstance(size, int):
        check_sizes(parts.config, size, uneven_heads)
    if mesh.get("context_parallel_size", 1) != 1:
        check_context_parallel(parts.config)


def build_scorers(cfg: AppConfig, folder: RunFolder) -> list[Callback]:
    """Return the callback that scores validation and writes samples and the report."""
    scoring = replace(
        cfg.scoring,
        scoring_asr=cfg.model.scoring_asr or "none",
        source_sample_rate=cfg.data.source_sample_rate,
        target_sample_rate=cfg.data.target_sample_rate,
    )
    return [ValidationScoring(scoring, folder.path)]
