"""Config files that build on others: `inherit: base.yaml`, read bases first, each with the lines of its keys."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2s_train.config_errors import ConfigError, LineFinder, explain

INHERIT = "inherit"
_HYDRAS = ("defaults", "hydra")


@dataclass(frozen=True)
class ConfigFile:
    """One YAML file: what it says itself, without `inherit`."""

    lines: LineFinder
    content: DictConfig


class ConfigFiles:
    """A config file and those it inherits, in the order in which they count: bases first, the file itself last.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: a file isn't there (the message names those like it, and who inherits it).
        ConfigError: one isn't YAML, inherits itself, or says `inherit` otherwise than by paths.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[ConfigFile] = []
        self._counted: set[Path] = set()  # a base of two bases counts once: again it would undo what the first one says
        self._collect(path, [])

    def locate(self, key: str) -> str:
        """Return `file:line` of the dotted `key` in the file whose value counts; the file itself if none has it."""
        having = [file.lines for file in self.files if file.lines.has(key)]
        return having[-1].locate(key) if having else str(self.path)

    def _collect(self, path: Path, heirs: list[Path]) -> None:
        lines = LineFinder(path, _read(path, heirs))
        if any(path.resolve() == heir.resolve() for heir in heirs):
            chain = " inherits ".join(str(each) for each in [*heirs, path])
            raise ConfigError(f"{heirs[-1]}: a file can't inherit itself: {chain}")
        try:
            content = OmegaConf.create(lines.text)
        except OmegaConfBaseException as error:
            raise explain(error, None, lines) from error
        assert isinstance(content, DictConfig)
        for key in _HYDRAS:
            if key in content:
                raise ConfigError(
                    f"{lines.locate(key)}: {key}: is Hydra's; here a file builds on others by"
                    f" {INHERIT}: base.yaml (or a list of files, the later ones win), and its own keys win over theirs"
                )
        for base in _bases(content.pop(INHERIT, None), lines):
            found = path.parent / Path(base).expanduser()
            if found.resolve() not in self._counted:
                self._collect(found, [*heirs, path])
        self._counted.add(path.resolve())
        self.files.append(ConfigFile(lines, content))


def make_way(config: DictConfig, content: Any, at: str = "") -> None:
    """Empty each mapping of `config` for which `content` names another `_target_`.

    The arguments of one class mean nothing to another: a strategy of its own in a file mustn't keep its base's.
    """
    for key, value in content.items_ex(resolve=False) if isinstance(content, DictConfig) else ():
        path = ".".join(filter(None, [at, str(key)]))
        if not isinstance(value, DictConfig) or value._is_none() or value._is_missing():
            continue
        before = OmegaConf.select(config, path, default=None, throw_on_resolution_failure=False)
        if not isinstance(before, Mapping):
            continue
        if value.get("_target_") and before.get("_target_") and value["_target_"] != before["_target_"]:
            OmegaConf.update(config, path, {}, merge=False)
        else:
            make_way(config, value, path)


def _bases(value: Any, lines: LineFinder) -> list[str]:
    if value is None:
        return []
    bases = [value] if isinstance(value, str) else list(value) if not isinstance(value, Mapping | int | float) else []
    if not bases or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{lines.locate(INHERIT)}: {INHERIT} is {value!r}: give the path of a YAML file, or a list")
    return bases


def _read(path: Path, heirs: list[Path]) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8")
    folder = path.parent if path.parent.is_dir() else Path()
    near = difflib.get_close_matches(path.name, [file.name for file in folder.glob("[!.]*.yaml")], n=1)
    hint = f": did you mean {folder / near[0]}?" if near else ""
    by = f", which {heirs[-1]} inherits" if heirs else ""
    raise FileNotFoundError(f"no config file {path}{by}{hint}")
