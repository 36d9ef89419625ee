"""A checkpoint that is a folder: how it takes the place of another one, so that a kill loses neither."""

from __future__ import annotations

import shutil
from pathlib import Path

from s2s_parallel.atomic_file import sync_folder

METADATA = ".metadata"  # torch's: what tensors there are, and in which file
META = "meta.pt"  # all that isn't a tensor of the model or of an optimizer


def partial_path(path: Path) -> Path:
    """Where the checkpoint `path` is written before it is whole."""
    return path.with_name(f".{path.name}.part")


def old_path(path: Path) -> Path:
    """Where the checkpoint that was at `path` lies while a new one takes its place."""
    return path.with_name(f".{path.name}.old")


def put_in_place(partial: Path, path: Path) -> None:
    """Rename `partial` to `path`; at each moment the new or the previous checkpoint is whole, at `path` or `old_path`.

    A folder can't be renamed over another one, so the previous one steps aside first.
    """
    old = old_path(path)
    if path.exists():  # else `old`, if there, is the only whole one
        discard(old)
        path.rename(old)
    partial.rename(path)
    sync_folder(path.parent)
    discard(old)


def whole_path(path: Path) -> Path:
    """Where to read the checkpoint `path`: there, or where a kill amid `put_in_place` left it."""
    old = old_path(path)
    return old if old.exists() and not path.exists() else path


def recover(path: Path) -> None:
    """Put back what a kill amid `put_in_place` left aside. For the run that writes `path`, before it begins."""
    try:
        if whole_path(path) != path:
            old_path(path).rename(path)
    except FileNotFoundError:  # another process of the run was faster
        pass


def discard(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there. A folder stops being a checkpoint first."""
    if path.is_dir() and not path.is_symlink():
        (path / METADATA).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
