"""A file that is whole or not there: a full disk or a kill during a write leaves the previous one alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


class CheckpointWriteError(OSError):
    """A checkpoint couldn't be written; the previous one at its path is untouched. `str()` is one line."""

    def __init__(self, path: Path, cause: OSError, free_bytes: int) -> None:
        super().__init__(
            f"checkpoint not written to {path}: {cause.strerror or cause} ({free_bytes:,} bytes free there)."
            " The checkpoints already written are untouched: free some space or choose another folder, then"
            " run the same command again to resume."
        )
        self.errno = cause.errno


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Have `write` fill a file that then replaces `path` in one step; on any failure `path` stays as it was.

    The partial file is `.NAME.part` beside `path`: the same file system, so that the rename is atomic, and
    one name, so that what a killed save leaves behind is overwritten by the next.

    Raises:
        CheckpointWriteError: the system refused the write.
    """
    path = path.absolute()
    partial = path.with_name(f".{path.name}.part")
    file: _FirstError | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as raw:
            file = _FirstError(raw)
            write(file)  # type: ignore[arg-type]  # the part of BinaryIO that writers use
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except Exception as error:
        # torch's zip writer replaces the system's error with its own RuntimeError when it closes the archive
        cause = error if isinstance(error, OSError) else file and file.error
        if cause:
            _discard(partial)  # first, so that the free space told is what a next save will find
            raise CheckpointWriteError(path, cause, free_bytes(path.parent)) from error
        raise
    finally:
        _discard(partial)


class _FirstError:
    """A binary file to write to that remembers the first error the system gave."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._raw.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._raw.flush()


def _discard(partial: Path) -> None:
    if partial.is_file():
        partial.unlink()


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(folder: Path) -> int:
    """What the file system of `folder`, which need not exist, has left."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return shutil.disk_usage(existing).free
