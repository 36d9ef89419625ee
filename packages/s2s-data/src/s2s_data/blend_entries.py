"""What ``input_cfg`` says: its entries, from the config or from files, as a tree with checked keys."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from lhotse.serialization import open_best
from lhotse.utils import is_valid_url
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from s2s_data.converters import CONVERTERS, EntryConverter
from s2s_data.errors import DataError, unknown_name

_DATA_KEYS = ("input_cfg", "shar_path", "cuts_path")
_COMMON_KEYS = ("type", "weight", "tags", "max_open_streams")
_KEYS = {
    "lhotse": ("shar_path", "cuts_path", *_COMMON_KEYS),
    "lhotse_shar": ("shar_path", "cuts_path", *_COMMON_KEYS),
    "group": ("input_cfg", "reweight_temperature", *_COMMON_KEYS),
    **dict.fromkeys(CONVERTERS, (*_DATA_KEYS, "reweight_temperature", *_COMMON_KEYS)),
}

# NeMo's keys that an entry may have and that change nothing here; docs/blends.md says for each why.
WITHOUT_EFFECT = frozenset(
    {
        "audio_locator_tag",
        "force_finite",
        "force_iterable_dataset",
        "force_map_dataset",
        "lang_field",
        "metadata_only",
        "shard_seed",
        "shuffle",
        "skip_missing_manifest_entries",
        "slice_length",
        "text_field",
        "token_equivalent_duration",
    }
)


@dataclass(frozen=True)
class Entry:
    """An entry as it is written, with those of its ``input_cfg``, read from their file if they are in one."""

    where: str
    keys: Mapping[str, Any]
    children: "tuple[Entry, ...]" = ()

    @property
    def depth(self) -> int:
        """How many levels of ``input_cfg`` it has, at the deepest place."""
        return 1 + max(child.depth for child in self.children) if self.children else 0

    def walk(self) -> "Iterator[Entry]":
        """Yield it and all entries within."""
        yield self
        for child in self.children:
            yield from child.walk()


def top_entry(where: str, keys: Mapping[str, Any]) -> Entry:
    """Return the config's own keys as an entry without a type, with all that it holds.

    Raises :class:`DataError` for an entry that is wrong, and a file that can't be read.
    """
    keys = {key: value for key, value in keys.items() if value is not None}
    _check_data_keys(keys, where)
    return Entry(where, keys, _read_children(keys, where, ()))


def _read_children(keys: Mapping[str, Any], where: str, files: tuple[str, ...]) -> tuple[Entry, ...]:
    """Read the entries of an ``input_cfg``; ``files`` are the blend files that are being read."""
    config, where = keys.get("input_cfg"), f"{where}.input_cfg"
    if config is None:
        return ()
    if isinstance(config, str | Path):
        path = str(config)
        if path in files:
            raise DataError(f"{where}: the blend file {path} includes itself: {' -> '.join((*files, path))}")
        config, where, files = _read_file(path, where), path, (*files, path)
    if isinstance(config, DictConfig | ListConfig):
        config = _plain(config, where)
    if not isinstance(config, Sequence) or isinstance(config, str) or not config:
        raise DataError(f"{where} must be a list of entries such as {{type: lhotse_shar, shar_path: a_folder}}")
    return tuple(_read_entry(f"{where}[{number}]", entry, files) for number, entry in enumerate(config))


def _read_file(path: str, where: str) -> Any:
    if not is_remote(path) and not Path(path).is_file():
        raise DataError(f"{where}: no blend file at {Path(path).absolute()}")
    try:
        with open_best(path) as file:
            return OmegaConf.create(file.read())
    except (OSError, ValueError, ImportError, YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{where}: can't read the blend file {path}: {type(error).__name__}: {reason}") from error


def _plain(config: DictConfig | ListConfig, where: str) -> Any:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise DataError(f"{where}: {error}".splitlines()[0]) from error


def _read_entry(where: str, keys: Any, files: tuple[str, ...]) -> Entry:
    if not isinstance(keys, Mapping) or "type" not in keys:
        raise DataError(f"{where} must be a mapping with a type, one of {', '.join(sorted(_KEYS))}")
    entry_type = str(keys["type"])
    if entry_type not in _KEYS:
        raise DataError(f"{where}.type: {unknown_name(entry_type, _KEYS)}")
    known = {*_KEYS[entry_type], *_converter_keys(entry_type)}
    for key in keys:
        if key not in known and key not in WITHOUT_EFFECT:
            raise DataError(f"{where}: {unknown_name(str(key), known)}")
    _check_data_keys(keys, where)
    return Entry(where, keys, _read_children(keys, where, files))


def _check_data_keys(keys: Mapping[str, Any], where: str) -> None:
    """Raise :class:`DataError` unless exactly one key names data."""
    possible = [key for key in _DATA_KEYS if key in _KEYS.get(str(keys.get("type")), _DATA_KEYS)]
    given = [key for key in possible if keys.get(key) is not None]
    if len(given) == 1:
        return
    needs = f"one of {', '.join(possible[:-1])} and {possible[-1]}" if len(possible) > 1 else possible[0]
    what = f"{where}: an entry of type {keys['type']}" if "type" in keys else where
    raise DataError(f"{what} needs {needs}, but has {' and '.join(given) or 'none'}")


def _converter_keys(entry_type: str) -> tuple[str, ...]:
    converter = CONVERTERS.get(entry_type)
    return tuple(field.name for field in fields(converter)) if converter else ()


def converter_of(entry: Entry) -> EntryConverter | None:
    """Build the converter that an entry names; None where it names none.

    Raises :class:`DataError` for a wrong value.
    """
    entry_type = str(entry.keys.get("type"))
    if entry_type not in CONVERTERS:
        return None
    given = {key: entry.keys[key] for key in _converter_keys(entry_type) if entry.keys.get(key) is not None}
    options: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    try:
        return CONVERTERS[entry_type](**options)
    except DataError as error:
        raise DataError(f"{entry.where}: {error}") from error


def temperatures_of(entry: Entry) -> tuple[float, ...] | None:
    """Return the entry's ``reweight_temperature``, one for each level within it; None if it has none.

    Raises :class:`DataError` if there are more or fewer values than levels.
    """
    given, where = entry.keys.get("reweight_temperature"), f"{entry.where}.reweight_temperature"
    if given is None:
        return None
    if not entry.children:
        raise DataError(f"{where} reweights the entries of an input_cfg, but there is none: take it out")
    values = list(given) if isinstance(given, Sequence) else [given] * entry.depth
    if len(values) != entry.depth:
        raise DataError(
            f"{where} has {len(values)} values, but input_cfg {entry.depth} levels: give one a level, the outermost "
            "first, or a single number for all"
        )
    for value in values:
        if not _is_number(value) or value < 0:
            raise DataError(f"{where} is {given!r}, but must be a number or a list of them, 0 or more")
    return tuple(float(value) for value in values)


def max_open_streams_of(entry: Entry) -> int | None:
    """Return how many leaves the entry wants open at most; None if it doesn't say."""
    value = entry.keys.get("max_open_streams")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{entry.where}.max_open_streams is {value!r}, but must be a whole number above 0")
    return value


def shares_of(entries: Sequence[Entry], temperature: float) -> list[float]:
    """Return what part of a level's draws each of its entries gets: evenly, or by their weights.

    Raises :class:`DataError` for a wrong weight, and where only some have one.
    """
    weights = [entry.keys.get("weight") for entry in entries]
    if all(weight is None for weight in weights):
        return [1 / len(entries)] * len(entries)
    for entry, weight in zip(entries, weights, strict=True):
        if weight is None:
            raise DataError(f"{entry.where} has no weight, but others of the list have: give all or none")
    checked = [check_weight(weight, f"{entry.where}.weight") for entry, weight in zip(entries, weights, strict=True)]
    return normalised(checked, temperature)


def normalised(weights: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return the weights to the power of ``temperature``, scaled to a sum of 1."""
    powers = [(weight / max(weights)) ** temperature for weight in weights]  # divided, that none overflows
    return [power / sum(powers) for power in powers]


def check_weight(weight: Any, where: str) -> float:
    """Return ``weight`` if it is a number above 0; raises :class:`DataError` else."""
    if not _is_number(weight) or weight <= 0:
        raise DataError(f"{where} is {weight!r}, but must be a number above 0")
    return float(weight)


def is_remote(path: str) -> bool:
    """Tell whether lhotse opens ``path`` otherwise than as a local file."""
    return path.startswith("pipe:") or is_valid_url(path)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
