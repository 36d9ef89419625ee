"""Blends: a tree of sources with weights, as ``input_cfg`` has it.

An entry has a ``type``: ``lhotse_shar`` (``shar_path``), ``lhotse`` (``cuts_path``, or ``shar_path``) or
``group`` (``input_cfg``, nested); a ``weight``, and ``tags`` that are attached to its cuts. In training each
level draws from its entries by their weights (evenly where there are none); in validation entries are read
one after the other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.lazy import LazyIteratorMultiplexer
from omegaconf import DictConfig, ListConfig, OmegaConf

from s2s_data.errors import DataError, unknown_name
from s2s_data.shar import CUTS, find_shards, folders
from s2s_data.share import Share, derive_seed
from s2s_data.sources import ManifestSource, SharSource, forever

_COMMON_KEYS = ("type", "weight", "tags")
_KEYS = {
    "lhotse_shar": ("shar_path", *_COMMON_KEYS),
    "lhotse": ("cuts_path", "shar_path", *_COMMON_KEYS),
    "group": ("input_cfg", *_COMMON_KEYS),
}


@dataclass(frozen=True)
class Blend:
    """A source, or several blends with weights."""

    children: "tuple[Blend | SharSource | ManifestSource, ...]"
    weights: tuple[float, ...]

    @property
    def sources(self) -> "list[SharSource | ManifestSource]":
        """The leaves, in the order of the config."""
        found: list[SharSource | ManifestSource] = []
        for child in self.children:
            found += child.sources if isinstance(child, Blend) else [child]
        return found

    @property
    def has_codes(self) -> bool:
        """Whether every source stores the agent's audio as codes."""
        return all(source.has_codes for source in self.sources)

    def num_cuts(self) -> int:
        """Count the cuts of all sources; reads manifests only."""
        return sum(source.num_cuts() for source in self.sources)

    def metadata(self, max_cuts_per_source: int | None = None) -> Iterator[Cut]:
        """Yield the cuts of all sources once, without their audio."""
        for source in self.sources:
            yield from islice(source.metadata(), max_cuts_per_source)

    def once(self, *, with_target_audio: bool) -> Iterator[Cut]:
        """Yield every cut of every source once, in stored order."""
        for source in self.sources:
            yield from source.once(with_target_audio=with_target_audio)

    def forever(
        self, share: Share, *, seed: int, shuffle: bool, with_target_audio: bool, keep: Callable[[Cut], bool]
    ) -> Iterator[Cut]:
        """Yield the cuts of a share that ``keep`` takes without end, drawn by weight.

        No two shares have a cut in common. ``seed`` sets the draws and, with ``shuffle``, the order of the
        shards. The same arguments give the same cuts.
        """
        streams: list[Iterator[Cut]] = []
        for number, child in enumerate(self.children):
            child_seed = derive_seed(seed, number)
            if isinstance(child, Blend):
                stream = child.forever(
                    share, seed=child_seed, shuffle=shuffle, with_target_audio=with_target_audio, keep=keep
                )
            else:
                order_seed = child_seed if shuffle else None
                stream = forever(child, share, seed=order_seed, with_target_audio=with_target_audio, keep=keep)
            streams.append(stream)
        if len(streams) == 1:
            return streams[0]
        return iter(LazyIteratorMultiplexer(*streams, weights=list(self.weights), seed=seed))


def parse_blend(
    where: str,
    *,
    input_cfg: Any = None,
    shar_path: Any = None,
    cuts_path: str | None = None,
) -> Blend:
    """Find the data that a config names, without reading any audio.

    Parameters
    ----------
    where
        The config key that holds the arguments, for messages: ``data.train_ds``.
    input_cfg
        A list of entries, or the path of a YAML file of them.
    shar_path
        A Shar folder, a list of folders (or of [folder, weight] pairs), or a mapping of fields to files.
    cuts_path
        A cut manifest.

    Raises
    ------
    DataError
        If not exactly one of the three is given, an entry is wrong, or data is missing.

    """
    given = {"input_cfg": input_cfg, "shar_path": shar_path, "cuts_path": cuts_path}
    given = {key: value for key, value in given.items() if value is not None}
    if len(given) != 1:
        has = f"has {' and '.join(given)}" if given else "has none"
        raise DataError(f"{where} needs one of input_cfg, shar_path and cuts_path, but {has}")
    if input_cfg is not None:
        return _parse_list(input_cfg, f"{where}.input_cfg")
    entry_type = "lhotse_shar" if shar_path is not None else "lhotse"
    return _group([_parse_entry({"type": entry_type, **given}, where, {})], [None], where)


def read_blend(input_cfg: Any, where: str = "input_cfg") -> CutSet:
    """Read every cut of a blend once, lazily and in stored order, with its audio.

    ``input_cfg`` is what :func:`parse_blend` takes. Raises :class:`DataError` as that does.
    """
    blend = parse_blend(where, input_cfg=input_cfg)
    return CutSet(_Once(blend))


@dataclass(frozen=True)
class _Once:
    """A blend as an iterable that can be read more than once."""

    blend: Blend

    def __iter__(self) -> Iterator[Cut]:
        return self.blend.once(with_target_audio=True)


_Node = Blend | SharSource | ManifestSource
_Tags = Mapping[str, Any]


def _parse_list(config: Any, where: str, tags: _Tags | None = None) -> Blend:
    if isinstance(config, str):
        path = Path(config)
        if not path.is_file():
            raise DataError(f"{where}: no blend file at {path.absolute()}")
        config, where = OmegaConf.load(path), str(path)
    if isinstance(config, DictConfig | ListConfig):
        config = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if not isinstance(config, Sequence) or not config:
        raise DataError(f"{where} must be a list of entries such as {{type: lhotse_shar, shar_path: a_folder}}")
    children = [_parse_entry(entry, f"{where}[{number}]", tags or {}) for number, entry in enumerate(config)]
    return _group(children, [entry.get("weight") for entry in config], where)


def _group(children: Sequence[_Node], weights: Sequence[float | None], where: str) -> Blend:
    if all(weight is None for weight in weights):
        return Blend(tuple(children), (1.0,) * len(children))
    for number, weight in enumerate(weights):
        if weight is None:
            raise DataError(f"{where}[{number}] has no weight, but others of the list have: give all or none")
        if not isinstance(weight, int | float) or weight <= 0:
            raise DataError(f"{where}[{number}].weight is {weight}, but must be a number above 0")
    return Blend(tuple(children), tuple(float(weight) for weight in weights if weight is not None))


def _parse_entry(entry: Any, where: str, tags: _Tags) -> _Node:
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise DataError(f"{where} must be a mapping with a type, one of {', '.join(sorted(_KEYS))}")
    entry_type = str(entry["type"])
    if entry_type not in _KEYS:
        raise DataError(f"{where}.type: {unknown_name(entry_type, _KEYS)}")
    for key in entry:
        if key not in _KEYS[entry_type]:
            raise DataError(f"{where}: {unknown_name(str(key), _KEYS[entry_type])}")
    tags = {**tags, **(entry.get("tags") or {})}
    if entry_type == "group":
        return _parse_list(_required(entry, "input_cfg", where), f"{where}.input_cfg", tags)
    if entry.get("shar_path") is None and entry_type == "lhotse":
        return _manifest(str(_required(entry, "cuts_path", where)), f"{where}.cuts_path", tags)
    return _parse_shar_path(_required(entry, "shar_path", where), f"{where}.shar_path", tags)


def _required(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if entry.get(key) is None:
        raise DataError(f"{where}: an entry of type {entry['type']} needs {key}")
    return entry[key]


def _manifest(path: str, where: str, tags: _Tags) -> ManifestSource:
    source = ManifestSource(f"{where} ({path})", path, tags)
    source.check()
    return source


def _parse_shar_path(shar_path: Any, where: str, tags: _Tags) -> _Node:
    if isinstance(shar_path, Mapping):
        return _shar(shar_path, f"{where}.{CUTS}", tags)
    if isinstance(shar_path, str):
        found = folders(shar_path, where)
        return _shar(found[0], where, tags) if len(found) == 1 else _by_size(found, where, tags)
    if not isinstance(shar_path, Sequence) or not shar_path:
        raise DataError(f"{where} must be a Shar folder, a list of folders, or a mapping of fields to files")
    if all(isinstance(item, str) for item in shar_path):
        return _by_size([folder for item in shar_path for folder in folders(item, where)], where, tags)
    if any(isinstance(item, str) or len(item) != 2 for item in shar_path):
        raise DataError(f"{where}: a list holds folders, or pairs of [folder, weight], not both")
    children = [_shar(folder, f"{where}[{number}]", tags) for number, (folder, _) in enumerate(shar_path)]
    return _group(children, [weight for _, weight in shar_path], where)


def _by_size(paths: Sequence[str], where: str, tags: _Tags) -> Blend:
    """Draw from the folders as if they were one: each weighs as many cuts as it has."""
    children = [_shar(path, f"{where}[{number}]", tags) for number, path in enumerate(paths)]
    return _group(children, [child.num_cuts() for child in children], where)


def _shar(path: str | Mapping[str, Any], where: str, tags: _Tags) -> SharSource:
    name = path if isinstance(path, str) else path.get(CUTS)
    source = SharSource(f"{where} ({name})", find_shards(path, where), tags)
    source.check()
    return source
