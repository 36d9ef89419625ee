"""A run's whole config: its sections, and how a YAML file with overrides becomes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2s_data.config import DataConfig, validation_sets
from s2s_eval.config import ScoringConfig
from s2s_model.config import ModelConfig
from s2s_model.targets import check_targets
from s2s_parallel.config import ParallelConfig, check_config, check_layout
from s2s_train.config_errors import ConfigError, explain
from s2s_train.exp_config import ExpConfig
from s2s_train.inherit import INHERIT, ConfigFile, ConfigFiles, make_way
from s2s_train.nemo_exp_keys import forget_nemos_keys
from s2s_train.profile_config import ProfileConfig, check_steps
from s2s_train.trainer_config import TrainerConfig

__all__ = ["AppConfig", "ConfigError", "load_as", "load_config", "load_named", "mesh_arguments", "mesh_sizes"]

_MESH_STRATEGIES = ("MeshStrategy", "ModelParallelStrategy")  # ours, and Lightning's, which becomes ours


@dataclass
class AppConfig:
    """Everything that decides what a run does."""

    name: str | None = None  # of the run; by default exp_manager.name or the config file's name
    seed: int = 1234  # of weights, dropout and everything else but the data's order (data.train_ds.seed)
    model: ModelConfig = field(default_factory=ModelConfig)  # see s2s_model.config
    data: DataConfig = field(default_factory=DataConfig)  # see s2s_data.config
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # lightning.pytorch.Trainer's arguments
    parallel: ParallelConfig = field(default_factory=ParallelConfig)  # see s2s_parallel.config
    scoring: ScoringConfig = field(default_factory=ScoringConfig)  # see s2s_eval.config
    exp_manager: ExpConfig = field(default_factory=ExpConfig)  # run folder, loggers, checkpoints
    profile: ProfileConfig = field(default_factory=ProfileConfig)  # a trace of chosen steps


Schema = TypeVar("Schema")


def load_config(path: Path, overrides: Sequence[str] = ()) -> AppConfig:
    """Read a run's config; see `load_as` for the arguments and errors.

    Raises:
        ValueError: also a validation set with an unknown key, a `_target_` outside the known packages, and values of
            `parallel` that mean nothing.
    """
    cfg = load_as(AppConfig, path, overrides)
    for section in ("validation_ds", "test_ds"):
        validation_sets(getattr(cfg.data, section), section)
    check_targets(asdict(cfg.model), "model")
    check_targets(asdict(cfg.trainer), "trainer")
    check_config(cfg.parallel)
    if cfg.profile.steps is not None:
        check_steps(cfg.profile.steps)
    mesh = mesh_arguments(cfg.trainer.strategy)
    tensor_parallel_size = (mesh or {}).get("tensor_parallel_size", 1)
    check_layout(cfg.parallel, sharded=mesh is not None, tensor_parallel=tensor_parallel_size not in (1, "auto"))
    if cfg.scoring.scoring_asr != ScoringConfig().scoring_asr:
        raise ConfigError(f"{path}: scoring.scoring_asr: set model.scoring_asr, as in NeMo's files")
    return cfg


def load_named(path: Path, overrides: Sequence[str] = ()) -> AppConfig:
    """As `load_config`; a run that has no name gets the file's."""
    cfg = load_config(path, overrides)
    cfg.name = cfg.name or cfg.exp_manager.name or path.stem
    return cfg


def mesh_arguments(strategy: Any) -> Mapping[str, Any] | None:
    """The arguments of a `trainer.strategy` that lays processes out as a mesh; None for another one."""
    is_mesh = isinstance(strategy, Mapping) and str(strategy.get("_target_")).rpartition(".")[2] in _MESH_STRATEGIES
    return strategy if is_mesh else None


def mesh_sizes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a mesh strategy's arguments that `s2s_parallel.mesh.resolve_mesh` takes."""
    keys = ("data_parallel_size", "tensor_parallel_size", "replicate_size", "context_parallel_size")
    return {key: arguments[key] for key in keys if key in arguments}


def load_as(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Read the YAML file `path`, apply `key.path=value` overrides, check every key and fill in defaults.

    Args:
        schema: the dataclass that names the known keys.
        path: a YAML file; `${...}` refers to other keys, `???` is a value the user has to give, `inherit: FILE` (or a
            list) takes what another file says, relative to this one, where this one says nothing else.
        overrides: as on the command line; values are YAML, list items are named by number (`a.0.b=1`).

    Raises:
        FileNotFoundError: no such file (the message names those like it).
        ConfigError: unknown key, value of another type, or missing value: the key's dotted path, where it
            stands, and the nearest known key.
    """
    config = OmegaConf.structured(schema)
    files = ConfigFiles(path)
    for file in files.files:
        config = _merged(config, file)
    for override in overrides:
        _override(config, override)
    return _finish(config, files, schema)


def _merged(config: DictConfig, file: ConfigFile) -> DictConfig:
    forget_nemos_keys(file.content, file.lines, config)
    make_way(config, file.content)
    try:
        merged = OmegaConf.merge(config, file.content)
    except OmegaConfBaseException as error:
        raise explain(error, config, file.lines) from error
    assert isinstance(merged, DictConfig)
    return merged


def _override(config: DictConfig, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key or key.startswith(("-", "+", "~")):
        raise ConfigError(f"override {override!r} isn't key=value, such as trainer.max_steps=100")
    if key == INHERIT:
        raise ConfigError(f"override {override!r}: a file says what it inherits, in a line {INHERIT}: FILE of its own")
    try:
        # through OmegaConf, whose YAML reads 1e-4 as a number; an interpolation stays one
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)
        for kept in _without_nemos_keys(config, override, key, parsed["value"]):
            if isinstance(kept, dict):
                make_way(config, OmegaConf.create(_nested(key, kept)))
            _open_null_sections(config, key, kept)
            OmegaConf.update(config, key, kept, merge=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, config, f"override {override!r}", key=key) from error


def _without_nemos_keys(config: DictConfig, override: str, key: str, value: Any) -> list[Any]:
    """What is left of the override's value; nothing if `key` itself is one of NeMo's that has no place here."""
    nested = OmegaConf.create(_nested(key, value))
    forget_nemos_keys(nested, f"override {override!r}", config)
    left: Any = OmegaConf.to_container(nested, resolve=False)
    for name in key.split("."):
        if name not in left:
            return []
        left = left[name]
    return [left]


def _nested(key: str, value: Any) -> dict[str, Any]:
    """The mapping in which the dotted `key` has `value`."""
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _open_null_sections(config: DictConfig, key: str, value: Any) -> None:
    """Make each null section that `key=value` reaches into an empty one: OmegaConf can't merge into null."""
    names = key.split(".")
    sections = names if isinstance(value, dict) else names[:-1]
    for depth in range(1, len(sections) + 1):
        path = ".".join(names[:depth])
        # the default stands for unknown keys and ???, which OmegaConf.update deals with
        if OmegaConf.select(config, path, default="") is None:
            OmegaConf.update(config, path, {}, merge=False)


def _finish(config: DictConfig, lines: ConfigFiles, schema: type[Schema]) -> Schema:
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        if missing:
            raise ConfigError(
                f"{lines.locate(missing[0])}: {', '.join(missing)} still to be given (???):"
                f" fill in the file or add {missing[0]}=VALUE to the command"
            )
        OmegaConf.resolve(config)
        built = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise explain(error, config, lines) from error
    return cast(Schema, built)
