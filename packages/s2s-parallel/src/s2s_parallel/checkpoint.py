"""Lightning's checkpoint files, written atomically and read without running code."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from s2s_parallel.atomic_file import CheckpointWriteError, write_atomically

__all__ = ["AtomicCheckpointIO", "CheckpointReadError", "CheckpointWriteError", "is_complete"]


class CheckpointReadError(ValueError):
    """A checkpoint is damaged, or holds objects that aren't safe to load. `str()` is one line."""


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
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read the file `path`, its tensors to `map_location`.

        Raises:
            FileNotFoundError: there is no such file.
            CheckpointReadError: the file is damaged or, unless trusted, holds more than plain containers.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        safe = not self._trusted if weights_only is None else weights_only
        try:
            state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=safe)
        except pickle.UnpicklingError as error:
            if not safe or not is_complete(path):
                raise CheckpointReadError(_damaged(path, error)) from error
            raise CheckpointReadError(
                f"checkpoint {path} holds more than tensors and plain containers ({_first_line(error)}): only"
                " if you trust its origin, read it with AtomicCheckpointIO(trusted=True)"
            ) from error
        except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointReadError(_damaged(path, error)) from error
        return state

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove the file (or folder of shards) at `path`, if there is one."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def is_complete(path: Path) -> bool:
    """Whether `path` is a whole checkpoint file: the zip's directory, written last, is there."""
    return path.is_file() and zipfile.is_zipfile(path)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _damaged(path: Path, error: BaseException) -> str:
    return (
        f"checkpoint {path} can't be read, it is damaged or no checkpoint ({_first_line(error)}): move it"
        " away and resume from another"
    )
