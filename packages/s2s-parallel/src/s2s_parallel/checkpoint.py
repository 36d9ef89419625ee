"""Lightning's checkpoints, written atomically and read without running code."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from s2s_parallel.atomic_file import CheckpointWriteError, write_atomically
from s2s_parallel.checkpoint_files import read_file, read_folder
from s2s_parallel.checkpoint_folder import META, discard, old_path, partial_path, recover, whole_path
from s2s_parallel.checkpoint_readers import CheckpointReadError, open_folder

__all__ = ["AtomicCheckpointIO", "CheckpointReadError", "CheckpointWriteError", "is_complete"]


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's checkpoint files, each written beside its target, synced, and renamed over it.

    Reads with `weights_only=True`: a checkpoint is tensors and plain containers, and can't run code.

    Args:
        trusted: read any pickle. Only for files whose origin is known, such as other projects' checkpoints.
    """

    def __init__(self, trusted: bool = False) -> None:
        self._trusted = trusted

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to the local file `path`.

        Raises:
            CheckpointWriteError: the system refused (disk full, quota, permission, file too large).
            ValueError: storage options were given; this writes local files only.
        """
        if storage_options is not None:
            raise ValueError("AtomicCheckpointIO writes local files and takes no storage_options")
        path = Path(path)
        if path.is_dir():  # of a run on several devices; a file can't be renamed over it
            discard(old_path(path))
            path.rename(old_path(path))
        if partial_path(path).is_dir():
            discard(partial_path(path))
        try:
            write_atomically(path, lambda file: torch.save(checkpoint, file))
        except BaseException:
            recover(path)
            raise
        discard(old_path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file `path`, its tensors to `map_location`; or a folder in parts, whole, to the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointReadError: the file is damaged or, unless trusted, holds more than plain containers.
        """
        path = whole_path(Path(path))
        trusted = self._trusted if weights_only is None else not weights_only
        if path.is_dir():
            return read_folder(path, trusted)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        return read_file(path, trusted, map_location)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove the file or folder at `path`, if there is one, and what a killed save left beside it."""
        path = Path(path)
        for left in (partial_path(path), old_path(path), path):
            discard(left)


def is_complete(path: Path) -> bool:
    """Whether `path` is a whole checkpoint: a file with its zip's directory, written last, or a folder with its parts.

    A folder that a kill left aside as it was being replaced counts as being at `path`.
    """
    path = whole_path(path)
    if not path.is_dir():
        return path.is_file() and zipfile.is_zipfile(path)
    try:
        open_folder(path)
    except CheckpointReadError:
        return False
    return zipfile.is_zipfile(path / META)
