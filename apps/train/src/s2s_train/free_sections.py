"""Checks of the sections whose keys are arguments of classes: a typo there is told before anything is built."""

from __future__ import annotations

from dataclasses import asdict

from s2s_model.perception.build import check_keys
from s2s_model.targets import check_arguments, check_names
from s2s_train.config import AppConfig


def check_free_sections(cfg: AppConfig) -> None:
    """Check the arguments of every `_target_`, the keys of `model.perception`, and the loggers' arguments.

    The classes are imported for it, NeMo's too.

    Raises:
        ValueError: a key that its class doesn't take, with the nearest that it does.
    """
    check_keys(cfg.model.perception)
    check_arguments(asdict(cfg.model), "model")
    check_arguments(asdict(cfg.trainer), "trainer")
    loggers = "lightning.pytorch.loggers"
    exp = cfg.exp_manager
    if exp.wandb_logger_kwargs:
        check_names(list(exp.wandb_logger_kwargs), f"{loggers}.WandbLogger", "exp_manager.wandb_logger_kwargs")
    if exp.summary_writer_kwargs:
        check_names(
            list(exp.summary_writer_kwargs), f"{loggers}.TensorBoardLogger", "exp_manager.summary_writer_kwargs"
        )
