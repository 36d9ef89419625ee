"""Random access to a shard's data: which bytes of a tar are whose.

lhotse reads a Shar from front to back. To hold thousands of dialogues for shuffling, and to go on in the middle
after a restart, we look only at the headers of a tar, and read a dialogue's bytes when its batch is made.
"""

import io
import os
import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.serialization import decode_json_line, deserialize_item
from lhotse.shar.utils import fill_shar_placeholder

from s2s_data.errors import UnreadableCutError

MAX_OPEN_FILES = 256
MAX_INDEXED_TARS = 512


class Member(NamedTuple):
    """One cut's data and manifest in a tar, as byte ranges."""

    path: str
    data_start: int
    num_data_bytes: int
    manifest_start: int
    num_manifest_bytes: int


def is_seekable(path: str) -> bool:
    """Tell whether a data file is a local, uncompressed tar."""
    return path.endswith(".tar") and os.path.isfile(path)


def find_member(path: str, index: int, cut_id: str) -> Member | None:
    """Return where cut number ``index`` lies in the tar ``path``; None if it has no such field.

    Raises :class:`UnreadableCutError` if the tar is broken or has another cut there.
    """
    try:
        members = _members(path)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise _unreadable(cut_id, path, error) from error
    if index >= len(members):
        raise UnreadableCutError(f"cut {cut_id}: {path} ends after {len(members)} cuts: it isn't complete")
    name = Path(members[index].path)
    if str(name.parent / name.stem) != cut_id:
        raise UnreadableCutError(f"cut {cut_id}: {path} has {name} in its place: it is of another Shar")
    return None if name.suffix == ".nodata" else members[index]


def read_member(path: str, member: Member, cut_id: str) -> Any:
    """Return a member's lhotse manifest, its data attached in memory.

    Raises :class:`UnreadableCutError` if it can't be read.
    """
    try:
        file = _open(path)
        manifest = _read(file, member.manifest_start, member.num_manifest_bytes)
        item = deserialize_item(decode_json_line(manifest.decode("utf-8")))
        data = _read(file, member.data_start, member.num_data_bytes)
        fill_shar_placeholder(item, data=data, tarpath=member.path)
    except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _unreadable(cut_id, path, error) from error
    return item


def _unreadable(cut_id: str, path: str, error: Exception) -> UnreadableCutError:
    return UnreadableCutError(f"cut {cut_id}: can't read {path}: {type(error).__name__}: {error}")


@lru_cache(maxsize=MAX_INDEXED_TARS)
def _members(path: str) -> list[Member]:
    members: list[Member] = []
    with tarfile.open(path, mode="r:") as tar:
        pairs = iter(tar)
        try:
            for data, manifest in zip(pairs, pairs, strict=False):
                members.append(Member(data.name, data.offset_data, data.size, manifest.offset_data, manifest.size))
        except tarfile.TarError:  # cut short: what comes before is good
            if not members:
                raise
    return members


@lru_cache(maxsize=MAX_OPEN_FILES)
def _open(path: str) -> io.FileIO:
    return open(path, "rb", buffering=0)  # closed when the cache lets go of it


def _read(file: io.FileIO, start: int, num_bytes: int) -> bytes:
    data = os.pread(file.fileno(), num_bytes, start)  # leaves no position behind: threads and forks may share it
    if len(data) != num_bytes:
        raise EOFError(f"the file ends {num_bytes - len(data)} bytes early")
    return data
