"""Config errors for people: the key's dotted path, the line where it stands, and the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)


class ConfigError(ValueError):
    """A mistake in a config; `str()` is one line."""


class Locates(Protocol):
    """What tells where a key stands."""

    def locate(self, key: str) -> str:
        """Return `file:line` of the dotted `key`."""


class LineFinder:
    """Where each key of a YAML file stands.

    Raises:
        ConfigError: the text isn't YAML, or isn't a mapping of keys.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: {_yaml_problem(error)}") from error
        if root is None:
            root = yaml.MappingNode("tag:yaml.org,2002:map", [])
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} has to be a mapping of keys to values, such as 'name: my_run'")
        self._lines = dict(_key_lines(root, ""))

    def has(self, key: str) -> bool:
        """Whether the dotted `key` stands in the file."""
        return key in self._lines

    def locate(self, key: str) -> str:
        """Return `file:line` of the dotted `key` (`a.b[0].c`), or the file if the key isn't in it."""
        line = self._lines.get(key)
        return f"{self.path}:{line}" if line else str(self.path)


def explain(
    error: OmegaConfBaseException | yaml.YAMLError, config: Any, where: Locates | str, key: str = ""
) -> ConfigError:
    """Turn OmegaConf's error about `config` (as it was before the mistake) into one line.

    `key` is the override's, for errors that don't tell a key in it or below it.
    """
    if isinstance(error, yaml.YAMLError):
        return ConfigError(f"{where}: {_yaml_problem(error)}")
    told = error.full_key or ""
    full_key = told if told.startswith((f"{key}.", f"{key}[")) or not key else key
    place = where if isinstance(where, str) else where.locate(full_key)
    problem = str(error.msg or error).strip().splitlines()[0]
    unknown = isinstance(error, ConfigKeyError | ConfigAttributeError)
    if unknown and not isinstance(error, InterpolationResolutionError):
        return ConfigError(f"{place}: unknown key {full_key}{_suggestion(config, full_key)}")
    return ConfigError(f"{place}: {full_key}: {problem}")


def _suggestion(config: Any, full_key: str) -> str:
    """The nearest sibling; else the same name elsewhere; else all siblings."""
    parent, name = _deepest_known(config, full_key)
    siblings = [str(key) for key in parent] if isinstance(parent, DictConfig) else []
    prefix = full_key.rpartition(name)[0]
    near = difflib.get_close_matches(name, siblings, n=1)
    if near:
        return f": did you mean {prefix}{near[0]}?"
    elsewhere = [path for path in _known_paths(config) if path.rpartition(".")[2] == name]
    if elsewhere:
        return f": did you mean {elsewhere[0]}?"
    return f" (known here: {', '.join(siblings)})" if siblings else ""


def _deepest_known(config: Any, full_key: str) -> tuple[Any, str]:
    """Return the last node on the path that exists, and the first name on it that doesn't."""
    node = config
    names = full_key.replace("[", ".").replace("]", "").split(".")
    for name in names[:-1]:
        if not isinstance(node, DictConfig) or name not in node:
            return node, name
        child = node._get_node(name)
        if not isinstance(child, DictConfig) or child._is_none() or child._is_missing():
            return node, name
        node = child
    return node, names[-1]


def _known_paths(node: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing():
        return
    for key in node:
        path = f"{prefix}{key!s}"
        yield path
        yield from _known_paths(node._get_node(key), f"{path}.")


def _key_lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            path = f"{prefix}.{name}" if prefix else name
            yield path, key.start_mark.line + 1
            yield from _key_lines(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            path = f"{prefix}[{index}]"
            yield path, value.start_mark.line + 1
            yield from _key_lines(value, path)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return f"{line}not valid YAML ({getattr(error, 'problem', None) or str(error).splitlines()[0]})"


def as_yaml(config: Any) -> str:
    """The whole config as YAML text, every default included."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
