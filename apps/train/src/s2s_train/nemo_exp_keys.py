"""NeMo's exp_manager keys that `ExpConfig` has no place for: what each means here, so that NeMo's files load.

A key is harmless at some values. At others it is refused, where the run would lack something it was asked for, or told
to have no effect. docs/config.md lists them all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2s_train.config_errors import ConfigError, Locates

logger = logging.getLogger(__name__)

SECTION = "exp_manager"
_ANY = object()  # every value is harmless
_LOGGERS = (
    "use create_wandb_logger (wandb_logger_kwargs.offline=true needs no network), create_tensorboard_logger or"
    " create_csv_logger; metrics.jsonl is always written"
)
_OF_A_SWITCH = "goes with its create_... switch, which can't be on here"


@dataclass(frozen=True)
class NemoKey:
    """A key of NeMo's: the values at which it asks for nothing, and what is said of others."""

    harmless: tuple[Any, ...]
    instead: str
    is_refused: bool = True  # False: told once that it has no effect

    def accepts(self, value: Any) -> bool:
        """Whether nothing needs to be said of `value`."""
        return _ANY in self.harmless or value is None or value in self.harmless


def _off(instead: str) -> NemoKey:
    return NemoKey((False,), instead)


def _no_effect(instead: str, *harmless: Any) -> NemoKey:
    return NemoKey(harmless, instead, is_refused=False)


# Values beside null at which a key is passed over are those of NeMo's defaults, or those by which it works as here.
NEMO_KEYS: dict[str, NemoKey] = {
    "version": _no_effect("a run has one folder, exp_dir/name, in which it is resumed: give another name"),
    "resume_past_end": _off("raise trainer.max_steps, and a finished run goes on"),
    "create_mlflow_logger": _off(_LOGGERS),
    "mlflow_logger_kwargs": _no_effect(_OF_A_SWITCH, _ANY),
    "create_dllogger_logger": _off(_LOGGERS),
    "dllogger_logger_kwargs": _no_effect(_OF_A_SWITCH, _ANY),
    "create_clearml_logger": _off(_LOGGERS),
    "clearml_logger_kwargs": _no_effect(_OF_A_SWITCH, _ANY),
    "create_neptune_logger": _off(_LOGGERS),
    "neptune_logger_kwargs": _no_effect(_OF_A_SWITCH, _ANY),
    "create_early_stopping_callback": _off(
        "give trainer.callbacks=[{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val_loss}]"
    ),
    "early_stopping_callback_params": _no_effect(_OF_A_SWITCH, _ANY),
    "create_ipl_epoch_stopper_callback": _off("it is for pseudo-labelling of ASR data: set trainer.max_epochs"),
    "ipl_epoch_stopper_callback_params": _no_effect(_OF_A_SWITCH, _ANY),
    "create_preemption_callback": _no_effect("a run that is told to stop always saves", True),
    "files_to_copy": NemoKey(([],), "the run's folder has config.yaml, environment.json and changes.patch already"),
    "log_step_timing": _no_effect("audio_s_per_s and data_wait_share are logged", True, False),
    "log_delta_step_timing": _no_effect("audio_s_per_s and data_wait_share are logged", False),
    "step_timing_kwargs": _no_effect("audio_s_per_s is the mean since the log step before", _ANY),
    "log_tflops_per_sec_per_gpu": _no_effect("mfu is logged on GPUs whose peak is known", True, False),
    "disable_validation_on_resume": _no_effect("a resumed run validates where the uncut one would have", True),
    "ema": NemoKey((), "means of the weights aren't kept: leave it out"),
    "seconds_to_sleep": _no_effect("ranks wait for each other where they need to", _ANY),
    "create_straggler_detection_callback": _off("compare audio_s_per_s between nodes with train:profile"),
    "straggler_detection_params": _no_effect(_OF_A_SWITCH, _ANY),
    "create_fault_tolerance_callback": _off("runs resume by themselves, by SLURM's requeue or the same command"),
    "fault_tolerance": _no_effect(_OF_A_SWITCH, _ANY),
    "checkpoint_callback_params.filepath": NemoKey((), "checkpoints are in the run's folder: set exp_manager.exp_dir"),
    "checkpoint_callback_params.dirpath": NemoKey((), "checkpoints are in the run's folder: set exp_manager.exp_dir"),
    "checkpoint_callback_params.verbose": _no_effect("the summary names the checkpoints", _ANY),
    "checkpoint_callback_params.save_weights_only": _off("a run resumes from all; train:export writes the weights"),
    "checkpoint_callback_params.auto_insert_metric_name": _no_effect("filename inserts metrics' names", True),
    "checkpoint_callback_params.train_time_interval": NemoKey((), "use every_n_train_steps"),
    "checkpoint_callback_params.prefix": NemoKey(("",), "put it into filename"),
    "checkpoint_callback_params.postfix": _no_effect("checkpoints end in .ckpt", _ANY),
    "checkpoint_callback_params.save_best_model": _off("train:export RUN OUT --checkpoint best writes it"),
    "checkpoint_callback_params.model_parallel_size": _no_effect("trainer.strategy says it", _ANY),
    "checkpoint_callback_params.save_on_train_epoch_end": _off("the best are saved after validation"),
    "checkpoint_callback_params.async_save": _no_effect("checkpoints of a mesh are always written so", False),
    "checkpoint_callback_params.save_last_n_optim_states": NemoKey((-1,), "every checkpoint is whole: use save_top_k"),
}


def forget_nemos_keys(content: DictConfig, where: Locates | str, known: Any = None) -> None:
    """Take NeMo's keys that have no place here out of `content`, a whole config or a part of one.

    Keys that `known`, the config so far, has itself stay. Those without effect are named in one warning.

    Raises:
        ConfigError: a key asks for what isn't there; the message says what to use.
    """
    without_effect = []
    for name, nemos in NEMO_KEYS.items():
        key = f"{SECTION}.{name}"
        section, _, leaf = key.rpartition(".")
        parent = OmegaConf.select(content, section, default=None, throw_on_resolution_failure=False)
        if not isinstance(parent, DictConfig) or leaf not in parent or _has(known, section, leaf):
            continue
        value = parent.pop(leaf)
        if nemos.accepts(value) or (isinstance(value, DictConfig) and value.get("enable") in (False, None)):
            continue
        if nemos.is_refused:
            place = where if isinstance(where, str) else where.locate(key)
            raise ConfigError(f"{place}: {key} is {_shown(value)}, which isn't supported: {nemos.instead}")
        without_effect.append(f"{key} ({nemos.instead})")
    if without_effect:
        logger.warning("without effect here: %s", "; ".join(without_effect))


def _has(known: Any, section: str, leaf: str) -> bool:
    parent = OmegaConf.select(known, section, default=None) if known is not None else None
    return isinstance(parent, DictConfig) and leaf in parent


def _shown(value: Any) -> str:
    return str(OmegaConf.to_container(value)) if OmegaConf.is_config(value) else repr(value)
