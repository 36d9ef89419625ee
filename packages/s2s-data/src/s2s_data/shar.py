"""Reading lhotse Shar: finding the shards of a folder, and their cuts, with errors that name the shard."""

import glob
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from lhotse.cut import Cut
from lhotse.lazy import count_newlines_fast
from lhotse.serialization import decode_json_line, deserialize_item, open_best
from lhotse.shar import LazySharIterator
from lhotse.shar.utils import to_shar_placeholder
from lhotse.utils import fastcopy

from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.shard_data import Member, find_member, is_seekable, read_member

CUTS = "cuts"
RECORDING = "recording"
TARGET_AUDIO = "target_audio"
TARGET_CODES = "target_codes"

# "{000..127}", as the shell and webdataset have it, and "_OP_000..127_CL_", NeMo's spelling of it.
_RANGE = re.compile(r"(?:\{|_OP_)(\d+)\.\.(\d+)(?:\}|_CL_)")
# "{train,dev}", as the shell has it.
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_REMOTE = re.compile(r"^(?:\w+://|pipe:)")

# What lhotse, tarfile, gzip and json raise at a broken shard; lhotse's own checks are asserts.
_READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    RuntimeError,
    AssertionError,
    tarfile.TarError,
    zlib.error,
)


@dataclass(frozen=True)
class Shard:
    """The files of one shard, by field; ``cuts`` is always among them."""

    paths: Mapping[str, str]

    def num_cuts(self) -> int:
        """Count the cuts, reading the manifest but no audio."""
        try:
            return int(count_newlines_fast(self.paths[CUTS]))
        except _READ_ERRORS as error:
            raise self._unreadable(error, [CUTS]) from error

    @property
    def is_seekable(self) -> bool:
        """Whether the data of any cut can be read without reading what comes before."""
        return all(is_seekable(path) for _, path in self._tars())

    def rows(self, start: int = 0) -> Iterator[tuple[int, Cut]]:
        """Yield the manifest's cuts from number ``start`` on with their numbers, without data.

        What lies in tars is a placeholder. Raises :class:`DataError` if the manifest is missing or broken.
        """
        path = self.paths[CUTS]
        lines_of = {field: other for field, other in self.paths.items() if field != CUTS and _is_jsonl(other)}
        try:
            with ExitStack() as files:
                lines = files.enter_context(open_best(path, "r"))
                others = [files.enter_context(open_best(other, "r")) for other in lines_of.values()]
                for number, (line, *items) in enumerate(zip(lines, *others, strict=False)):
                    if number < start:
                        continue
                    cut = deserialize_item(decode_json_line(line))
                    for field, item in zip(lines_of, items, strict=True):
                        if (value := decode_json_line(item).get(field)) is not None:
                            setattr(cut, field, value)
                    cut.shard_origin = path
                    self._add_placeholders(cut, number)
                    yield number, cut
        except _READ_ERRORS as error:
            raise self._unreadable(error, [CUTS, *lines_of]) from error

    def find(self, cut_id: str, number: int, skip_fields: Sequence[str] = ()) -> Mapping[str, Member]:
        """Return where the data of cut ``number`` lies, by field. The shard is seekable.

        Raises :class:`UnreadableCutError` if a tar is broken or has another cut there.
        """
        found = {f: find_member(path, number, cut_id) for f, path in self._tars() if f not in skip_fields}
        return {field: member for field, member in found.items() if member is not None}

    def attach(self, cut: Cut, members: Mapping[str, Member]) -> Cut:
        """Return a copy of ``cut`` with its data, in memory.

        Raises :class:`UnreadableCutError` if it can't be read.
        """
        loaded: Cut = fastcopy(cut, custom=dict(cut.custom or {}))  # the plan's own cut stays light
        for field, member in members.items():
            setattr(loaded, field, read_member(self.paths[field], member, cut.id))
        return loaded

    def _tars(self) -> Iterator[tuple[str, str]]:
        return ((field, path) for field, path in self.paths.items() if field != CUTS and not _is_jsonl(path))

    def _add_placeholders(self, cut: Cut, number: int) -> None:
        """Give a cut the fields that were added beside its manifest: lhotse finds them in the tars alone."""
        for field, path in self._tars():
            if field in (RECORDING, "features") or cut.has_custom(field) or not is_seekable(path):
                continue
            with suppress(UnreadableCutError):  # loading says so
                if (member := find_member(path, number, cut.id)) is not None:
                    setattr(cut, field, to_shar_placeholder(read_member(path, member, cut.id)))

    def cuts(self, skip_fields: Sequence[str] = (), *, metadata_only: bool = False) -> Iterator[Cut]:
        """Yield the cuts in the order of the shard.

        Parameters
        ----------
        skip_fields
            Fields whose files aren't opened: their data can't be loaded from the cuts.
        metadata_only
            Open no file but the manifest.

        Raises
        ------
        DataError
            If a file of the shard is missing or broken.

        """
        wanted = [field for field in self.paths if field not in skip_fields]
        fields = {field: [self.paths[field]] for field in ([CUTS] if metadata_only else wanted)}
        try:
            yield from LazySharIterator(fields=fields)
        except _READ_ERRORS as error:
            raise self._unreadable(error, fields) from error

    def _unreadable(self, error: Exception, fields: Iterable[str]) -> DataError:
        return DataError(
            f"unreadable Shar shard {self.paths[CUTS]}: {type(error).__name__}: {error}; "
            f"its files are {', '.join(fields)}: write it anew, or take it out of the folder"
        )


def find_shards(shar_path: str | Mapping[str, Any], where: str) -> list[Shard]:
    """Return the shards of a Shar folder, or of a mapping of fields to files.

    Parameters
    ----------
    shar_path
        A folder, or ``{"cuts": files, "recording": files, ...}`` where files is a path or a list of them;
        paths may hold ``*`` and ``{000..127}`` (NeMo's ``_OP_000..127_CL_`` too), and be URLs that lhotse can
        open.
    where
        The config key, for messages.

    Raises
    ------
    DataError
        If nothing is there, or the fields have different numbers of shards.

    """
    if isinstance(shar_path, Mapping):
        files = {str(field): _expand_all(value, where) for field, value in shar_path.items()}
    else:
        files = _files_of_folder(shar_path, where)
    if not files.get(CUTS):
        raise DataError(f"{where}: no cuts.*.jsonl.gz in {_shown(shar_path)}: a Shar has one for each shard")
    counts = {field: len(paths) for field, paths in files.items()}
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{where}: the fields of the Shar {_shown(shar_path)} have different numbers of shards, "
            f"{counts}: was it copied in full?"
        )
    return [Shard(dict(zip(files, paths, strict=True))) for paths in zip(*files.values(), strict=True)]


def _is_jsonl(path: str) -> bool:
    return ".jsonl" in Path(path).suffixes


def folders(pattern: str, where: str) -> list[str]:
    """Expand a folder pattern (``*``, ``{0..3}``); a pattern that matches nothing is an error."""
    return _expand(pattern, where)


def _files_of_folder(folder: str, where: str) -> dict[str, list[str]]:
    path = Path(folder)
    if not path.is_dir():
        what = "is a file, not a folder" if path.exists() else "doesn't exist"
        raise DataError(f"{where}: the Shar folder {path.absolute()} {what}: check the path (and where you run from)")
    files: dict[str, list[str]] = {}
    for file in sorted(path.iterdir()):
        field, *suffixes = file.name.split(".")
        if field and {"tar", "jsonl"} & set(suffixes):
            files.setdefault(field, []).append(str(file))
    return files


def _expand_all(value: str | Sequence[str], where: str) -> list[str]:
    return list(chain.from_iterable(_expand(path, where) for path in ([value] if isinstance(value, str) else value)))


def _expand(pattern: str, where: str) -> list[str]:
    if match := _CHOICE.search(pattern):
        choices = match.group(1).split(",")
        return _expand_all([pattern[: match.start()] + choice + pattern[match.end() :] for choice in choices], where)
    if match := _RANGE.search(pattern):
        first, last = match.groups()
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        return _expand_all([pattern[: match.start()] + number + pattern[match.end() :] for number in numbers], where)
    if _REMOTE.match(pattern) or not glob.has_magic(pattern):
        return [pattern]
    if found := sorted(glob.glob(pattern)):
        return found
    raise DataError(f"{where}: nothing matches {Path(pattern).absolute()}: check the pattern")


def _shown(shar_path: str | Mapping[str, Any]) -> str:
    return f"{dict(shar_path)}" if isinstance(shar_path, Mapping) else str(Path(shar_path).absolute())
