"""The `trainer` section to a lightning Trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from s2s_model.targets import instantiate
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_parallel.strategy import MeshStrategy
from s2s_train.allocation import on_allocation
from s2s_train.trainer_config import TrainerConfig

_SET_BY_EXP_MANAGER = ("logger", "enable_checkpointing", "default_root_dir")
_LIGHTNINGS_MESH_STRATEGY = (
    "lightning.pytorch.strategies.ModelParallelStrategy",
    "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy",
)


def build_trainer(
    cfg: TrainerConfig, *, loggers: Sequence[Logger], callbacks: Sequence[Callback], root_dir: str
) -> Trainer:
    """Build the Trainer.

    Raises:
        ValueError: a key that is set elsewhere, hardware that isn't there, no end of training, or mesh sizes that
            don't fit the number of processes.
    """
    _check(cfg)
    cfg = on_allocation(cfg)
    options: dict[str, Any] = {
        name: _build(value, f"trainer.{name}")
        for name, value in (asdict(cfg) | {"strategy": _our_strategy(cfg.strategy)}).items()
        if name not in _SET_BY_EXP_MANAGER
    }
    if isinstance(options["strategy"], MeshStrategy):
        options["strategy"].check_mesh(_world_size(cfg))
        options["inference_mode"] = False  # weights that FSDP gathers in inference mode can't be trained on
    options["callbacks"] = [*callbacks, *(options["callbacks"] or [])]
    options["plugins"] = [AtomicCheckpointIO(), *_half_precision(options), *(options["plugins"] or [])]
    saves = any(isinstance(callback, Checkpoint) for callback in options["callbacks"])
    return Trainer(**options, logger=list(loggers), enable_checkpointing=saves, default_root_dir=root_dir)


def _our_strategy(strategy: Any) -> Any:
    """Lightning's strategy becomes ours, which takes its arguments."""
    if isinstance(strategy, dict) and "_target_" not in strategy:
        raise ValueError(
            "trainer.strategy has arguments but no class: set"
            " trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy"
        )
    is_lightnings = isinstance(strategy, dict) and strategy.get("_target_") in _LIGHTNINGS_MESH_STRATEGY
    return {**strategy, "_target_": "s2s_parallel.strategy.MeshStrategy"} if is_lightnings else strategy


def _half_precision(options: dict[str, Any]) -> list[Any]:
    """In bf16-true Lightning casts all of a batch, audio too; NeMo's plugin leaves audio in float32."""
    if options["precision"] not in ("bf16-true", "16-true"):
        return []
    from nemo.utils.trainer_utils import HalfPrecisionForAudio

    return [HalfPrecisionForAudio(options.pop("precision"))]


def _build(value: Any, key: str) -> Any:
    """Objects of `_target_` mappings; lists of them too (devices may be a list of numbers)."""
    if isinstance(value, list):
        return [_build(item, f"{key}[{index}]") for index, item in enumerate(value)]
    return instantiate(value, key, base=object) if isinstance(value, dict) and "_target_" in value else value


def _check(cfg: TrainerConfig) -> None:
    if cfg.logger not in (None, False):
        raise ValueError(
            "trainer.logger: set it to false; loggers are chosen by exp_manager.create_wandb_logger and"
            " exp_manager.create_tensorboard_logger, and metrics.jsonl is always written"
        )
    if cfg.reload_dataloaders_every_n_epochs:
        raise ValueError("trainer.reload_dataloaders_every_n_epochs has to be 0: training data goes on over epochs")
    if cfg.max_steps < 0 and cfg.max_epochs is None and cfg.max_time is None and not cfg.fast_dev_run:
        raise ValueError("training has no end: give trainer.max_steps=N")
    if cfg.max_epochs is not None and cfg.limit_train_batches is None and not cfg.fast_dev_run:
        raise ValueError(
            "trainer.max_epochs needs trainer.limit_train_batches=N, the batches of an epoch:"
            " training data has no end of its own"
        )
    if cfg.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator is {cfg.accelerator}, but torch {torch.__version__} sees no GPU here:"
            " use trainer.accelerator=cpu, or install torch's CUDA build and check nvidia-smi"
        )


def _world_size(cfg: TrainerConfig) -> int:
    devices = cfg.devices
    if devices in ("auto", -1, "-1"):
        on_gpu = cfg.accelerator != "cpu" and torch.cuda.is_available()
        devices = torch.cuda.device_count() if on_gpu else 1
    per_node = len(devices) if isinstance(devices, list) else int(devices)
    return int(os.environ.get("WORLD_SIZE", per_node * cfg.num_nodes))
