"""Blends: sources with weights, as ``input_cfg`` has them.

An entry has a ``type``: ``lhotse_shar`` or ``lhotse`` (``shar_path`` or ``cuts_path``), ``group`` (``input_cfg``,
nested), or one of :data:`s2s_data.converters.CONVERTERS`, which converts what it wraps (any of the three); a
``weight``, and ``tags`` that are attached to its cuts. However deep it is nested, a blend comes out flat: in
training a leaf is drawn with the product of the shares along its way, which is how drawing level by level would
draw it; in validation leaves are read one after the other. ``docs/blends.md`` has all keys.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

from s2s_data.blend_entries import (
    WITHOUT_EFFECT,
    Entry,
    check_weight,
    converter_of,
    is_remote,
    max_open_streams_of,
    normalised,
    shares_of,
    temperatures_of,
    top_entry,
)
from s2s_data.converters import EntryConverter, FilesBesideManifest
from s2s_data.errors import DataError
from s2s_data.shar import CUTS, TARGET_AUDIO, TARGET_CODES, find_shards, folders
from s2s_data.sources import Converter, ManifestSource, SharSource, once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leaf:
    """A source and its share of the draws; the shares of a blend's leaves sum to 1."""

    source: SharSource | ManifestSource
    weight: float


@dataclass(frozen=True)
class Blend:
    """Leaves in the order of the config."""

    leaves: tuple[Leaf, ...]
    max_open_streams: int | None = None  # so many leaves may be open at a time; None: 256

    @property
    def has_codes(self) -> bool:
        """Whether every source stores the agent's audio as codes."""
        return all(leaf.source.has_codes for leaf in self.leaves)

    def num_cuts(self) -> int:
        """Count the cuts of all sources, without those that a converter leaves out; reads manifests only."""
        return sum(
            sum(1 for _ in leaf.source.metadata()) if leaf.source.convert else leaf.source.num_cuts()
            for leaf in self.leaves
        )

    def metadata(self, max_cuts_per_source: int | None = None) -> Iterator[Cut]:
        """Yield the cuts of all sources once, without their audio."""
        for leaf in self.leaves:
            yield from islice(leaf.source.metadata(), max_cuts_per_source)

    def once(self, *, with_target_audio: bool) -> Iterator[Cut]:
        """Yield every cut of every source once, in stored order."""
        for leaf in self.leaves:
            yield from (ref.load() for ref in once(leaf.source, with_target_audio=with_target_audio))


def parse_blend(
    where: str,
    *,
    input_cfg: Any = None,
    shar_path: Any = None,
    cuts_path: Any = None,
    reweight_temperature: float | Sequence[float] | None = None,
    max_open_streams: int | None = None,
) -> Blend:
    """Find the data that a config names, without reading any audio.

    Folders are listed once, and of each manifest the first cut is read. Whole manifests are read only where
    several Shar folders or manifests stand in one list without weights: each then weighs as many cuts as it has.

    Parameters
    ----------
    where
        The config key that holds the arguments, for messages: ``data.train_ds``.
    input_cfg
        A list of entries, or the path or URL of a YAML file of them.
    shar_path
        A Shar folder, a list of folders (or of [folder, weight] pairs), or a mapping of fields to files.
    cuts_path
        A cut manifest, or a list of them.
    reweight_temperature
        Raises the weights of each level of ``input_cfg`` to a power: one for all levels, or a list of one a level.
    max_open_streams
        Most leaves to hold open at a time. Entries may have the key too: the smallest holds for the blend.

    Raises
    ------
    DataError
        If not exactly one of the three is given, an entry is wrong, or data is missing.

    """
    keys = {
        "input_cfg": input_cfg,
        "shar_path": shar_path,
        "cuts_path": cuts_path,
        "reweight_temperature": reweight_temperature,
        "max_open_streams": max_open_streams,
    }
    entry = top_entry(where, keys)
    if unused := sorted({key for item in entry.walk() for key in item.keys if key in WITHOUT_EFFECT}):
        logger.warning("%s: %s in its entries have no effect here, see docs/blends.md", where, ", ".join(unused))
    limits = [limit for item in entry.walk() if (limit := max_open_streams_of(item)) is not None]
    return Blend(tuple(_leaves(entry, _Around())), min(limits, default=None))


def read_blend(input_cfg: Any, where: str = "input_cfg") -> CutSet:
    """Read every cut of a blend once, lazily and in stored order, with its audio.

    ``input_cfg`` is what :func:`parse_blend` takes. Raises :class:`DataError` as that does.
    """
    return CutSet(_Once(parse_blend(where, input_cfg=input_cfg)))


@dataclass(frozen=True)
class _Once:
    """A blend as an iterable that can be read more than once."""

    blend: Blend

    def __iter__(self) -> Iterator[Cut]:
        return self.blend.once(with_target_audio=True)


@dataclass(frozen=True)
class _Around:
    """What an entry has from the entries around it."""

    tags: Mapping[str, Any] = field(default_factory=dict)
    convert: tuple[EntryConverter, ...] = ()  # the innermost first
    temperatures: tuple[float, ...] = ()  # of the levels from here on; 1 where there are no more


def _leaves(entry: Entry, around: _Around) -> list[Leaf]:
    """Return the leaves of an entry; their weights sum to 1."""
    around = _within(entry, around)
    if entry.keys.get("shar_path") is not None:
        return _shar_leaves(entry.keys["shar_path"], f"{entry.where}.shar_path", around)
    if entry.keys.get("cuts_path") is not None:
        return _manifest_leaves(entry.keys["cuts_path"], f"{entry.where}.cuts_path", around)
    temperature, *below = around.temperatures or (1.0,)
    around = replace(around, temperatures=tuple(below))
    leaves = []
    for child, share in zip(entry.children, shares_of(entry.children, temperature), strict=True):
        leaves += [Leaf(leaf.source, leaf.weight * share) for leaf in _leaves(child, around)]
    return leaves


def _within(entry: Entry, around: _Around) -> _Around:
    """Add to what the entries around say what the entry says itself."""
    tags = entry.keys.get("tags") or {}
    if not isinstance(tags, Mapping):
        raise DataError(f"{entry.where}.tags is {tags!r}, but must be a mapping such as {{lang: en}}")
    tags, convert = {**around.tags, **tags}, around.convert
    if converter := converter_of(entry):
        tags, convert = {"task": entry.keys["type"], **tags}, (converter, *convert)
    own_temperatures = temperatures_of(entry)
    return _Around(tags, convert, around.temperatures if own_temperatures is None else own_temperatures)


def _shar_leaves(shar_path: Any, where: str, around: _Around) -> list[Leaf]:
    if isinstance(shar_path, Mapping):
        return [Leaf(_shar(shar_path, where, around), 1.0)]
    if isinstance(shar_path, str):
        return _by_size([_shar(folder, where, around) for folder in _folders(shar_path, where)])
    if not isinstance(shar_path, Sequence) or not shar_path:
        raise DataError(f"{where} must be a Shar folder, a list of folders, or a mapping of fields to files")
    if all(isinstance(item, str) for item in shar_path):
        found = [folder for item in shar_path for folder in _folders(item, where)]
        return _by_size([_shar(folder, f"{where}[{number}]", around) for number, folder in enumerate(found)])
    if any(isinstance(item, str) or len(item) != 2 for item in shar_path):
        raise DataError(f"{where}: a list holds folders, or pairs of [folder, weight], not both")
    weights = [check_weight(weight, f"{where}[{number}][1]") for number, (_, weight) in enumerate(shar_path)]
    sources = [_shar(str(folder), f"{where}[{number}]", around) for number, (folder, _) in enumerate(shar_path)]
    return [Leaf(source, share) for source, share in zip(sources, normalised(weights), strict=True)]


def _folders(pattern: str, where: str) -> list[str]:
    if is_remote(pattern):
        raise DataError(
            f"{where}: the files of {pattern} can't be listed: name them, as in {{cuts: "
            f'"{pattern}/cuts.{{000000..000009}}.jsonl.gz", recording: ..., target_audio: ...}}'
        )
    return folders(pattern, where)


def _listable_files(files: Any, where: str) -> list[str]:
    if not isinstance(files, str | Sequence):
        raise DataError(f"{where} must be a path or a list of them, but is {files!r}")
    return [_listable(str(file), where) for file in ([files] if isinstance(files, str) else files)]


def _listable(pattern: str, where: str) -> str:
    if is_remote(pattern) and not pattern.startswith("pipe:") and "*" in pattern:
        raise DataError(
            f"{where}: what matches {pattern} can't be listed: name the files, with {{000000..000009}} for the *"
        )
    return pattern


def _manifest_leaves(cuts_path: Any, where: str, around: _Around) -> list[Leaf]:
    paths = [cuts_path] if isinstance(cuts_path, str | Path) else cuts_path
    if not isinstance(paths, Sequence) or not paths:
        raise DataError(f"{where} must be a cut manifest (cuts.jsonl.gz), or a list of them")
    found = [path for item in paths for path in folders(_listable(str(item), where), where)]
    return _by_size([_manifest(path, where, around) for path in found])


def _by_size(sources: Sequence[SharSource | ManifestSource]) -> list[Leaf]:
    """Draw from the sources as if they were one: each weighs as many cuts as it has."""
    if len(sources) == 1:
        return [Leaf(sources[0], 1.0)]
    sizes = [source.num_cuts() for source in sources]
    for source, size in zip(sources, sizes, strict=True):
        if size == 0:
            raise DataError(f"{source.where} has no cuts: take it out")
    return [Leaf(source, share) for source, share in zip(sources, normalised(sizes), strict=True)]


def _manifest(path: str, where: str, around: _Around) -> ManifestSource:
    convert: tuple[Converter, ...] = around.convert
    if not is_remote(path):
        convert = (FilesBesideManifest(str(Path(path).parent)), *convert)
    source = ManifestSource(f"{where} ({path})", path, around.tags, convert)
    source.check()
    return source


def _shar(path: str | Mapping[str, Any], where: str, around: _Around) -> SharSource:
    if isinstance(path, Mapping):
        where, name = f"{where}.{CUTS}", path.get(CUTS)
        path = {field: _listable_files(files, where) for field, files in path.items()}
    else:
        name = path
    shards = find_shards(path, where)
    if not all(converter.keeps_codes for converter in around.convert):
        if TARGET_CODES in shards[0].paths and TARGET_AUDIO not in shards[0].paths:
            raise DataError(
                f"{where} ({name}) stores the agent as {TARGET_CODES} alone, which don't fit once it is converted: "
                f"it needs {TARGET_AUDIO}"
            )
        shards = [
            replace(shard, paths={field: file for field, file in shard.paths.items() if field != TARGET_CODES})
            for shard in shards
        ]
    source = SharSource(f"{where} ({name})", shards, around.tags, around.convert)
    source.check()
    return source
