"""Checks of the sections whose keys are arguments of classes: a typo there is told before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from s2s_model.perception.build import check_keys
from s2s_model.targets import check_arguments, check_names
from s2s_train.config import AppConfig


def check_free_sections(cfg: AppConfig) -> None:
    """Check the arguments of every `_target_`, the keys of `model.perception`, and the loggers' arguments.

    The classes are imported for it, NeMo's too.

    Raises:
        ValueError: a key that its class doesn't take, with the nearest that it does; or a secret, which the run's
            config.yaml would hold.
    """
    check_keys(cfg.model.perception)
    check_arguments(asdict(cfg.model), "model")
    check_arguments(asdict(cfg.trainer), "trainer")
    loggers = "lightning.pytorch.loggers"
    exp = cfg.exp_manager
    _refuse_secrets(exp.wandb_logger_kwargs, "exp_manager.wandb_logger_kwargs")
    if exp.wandb_logger_kwargs:
        check_names(list(exp.wandb_logger_kwargs), f"{loggers}.WandbLogger", "exp_manager.wandb_logger_kwargs")
    if exp.summary_writer_kwargs:
        check_names(
            list(exp.summary_writer_kwargs), f"{loggers}.TensorBoardLogger", "exp_manager.summary_writer_kwargs"
        )


def _refuse_secrets(config: Any, where: str) -> None:
    for key, value in config.items() if isinstance(config, Mapping) else ():
        if key == "api_key" and value is not None:
            raise ValueError(
                f"{where}.api_key: the run's config.yaml would hold it: set WANDB_API_KEY in the environment, or run"
                " wandb login once"
            )
        _refuse_secrets(value, f"{where}.{key}")
