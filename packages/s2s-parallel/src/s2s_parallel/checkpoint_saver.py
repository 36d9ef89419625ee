"""Saves a checkpoint in parts while training goes on: one at a time, and no error is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from s2s_parallel.atomic_file import CheckpointWriteError, free_bytes
from s2s_parallel.checkpoint_folder import discard, partial_path
from s2s_parallel.distributed_checkpoint import FolderWriter, as_bytes, causes, check_blocks, split_checkpoint
from s2s_parallel.staging import ReusedStager

logger = logging.getLogger(__name__)


class CheckpointSaver:
    """Writes checkpoints with all processes of a group; each method has to be called on all of them, unless it says so.

    Args:
        group: of its own and on the CPU (gloo), so that what a save tells the others never mixes with training.
        writer: what writes the parts.
    """

    def __init__(self, group: ProcessGroup, writer: Callable[[Path, bytes], FolderWriter] = FolderWriter) -> None:
        self._group = group
        self._writer = writer
        self._path: Path | None = None  # of the save that goes on
        self._future: Future[Any] | None = None
        self._to_remove: list[Callable[[], None]] = []
        self._stager = ReusedStager()

    def save(self, checkpoint: dict[str, Any], path: Path, *, in_background: bool) -> None:
        """Write the folder `path`.

        Args:
            checkpoint: Lightning's, with optimizer states by parameter name. In the background its tensors are copied
                to the CPU first, so that training may change them.
            path: the folder, which may exist; absolute.
            in_background: return when the tensors are copied.

        Raises:
            CheckpointWriteError: this save failed or, if it had gone on in the background, the one before.
            ValueError: a tensor is shared in a way that can't be stored.
        """
        self.wait()
        tensors, meta = split_checkpoint(checkpoint)
        check_blocks(tensors)
        is_first = dist.get_rank(self._group) == 0
        writer = self._writer(path, as_bytes(meta) if is_first else b"")
        options: dict[str, Any] = {
            "storage_writer": writer,
            "planner": DefaultSavePlanner(flatten_state_dict=False),
            "process_group": self._group,
        }
        if in_background:
            future = async_save(tensors, async_stager=self._stager, **options)
            assert isinstance(future, Future)  # tensors are copied before this returns
            self._path, self._future = path, future
            return
        try:
            save(tensors, **options)
        except BaseException as error:  # torch's collection of what failed on each process is no Exception
            raise self._failure(path, error) from error

    def wait(self) -> None:
        """Wait for the save in the background, if there is one; each process may call it when it likes.

        Raises:
            CheckpointWriteError: that save failed. It is raised once.
        """
        if self._future is None or self._path is None:
            return
        error, path = self._future.exception(), self._path  # Ctrl-C here leaves it to be waited for again
        removals, self._to_remove = self._to_remove, []
        self._path = self._future = None
        if error is not None:
            raise self._failure(path, error) from error
        for remove in removals:
            remove()

    def when_saved(self, remove: Callable[[], None]) -> None:
        """Call `remove` when the save in the background is whole; at once if there is none. For one process alone.

        If that save fails it isn't called: what was to make room for a newer checkpoint is then still of use.
        """
        if self._future is None:
            remove()
        else:
            self._to_remove.append(remove)

    def is_saving(self, path: Path) -> bool:
        """Whether a save of `path` goes on in the background."""
        return path == self._path

    def _failure(self, path: Path, error: BaseException) -> BaseException:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return error
        if dist.get_rank(self._group) == 0:
            with suppress(OSError):  # the same trouble again
                discard(partial_path(path))  # first, so that the free space told is what a next save will find
        found = causes(error)
        refused = [cause for cause in found if isinstance(cause, OSError)]
        return CheckpointWriteError(path, refused[0], free_bytes(path.parent)) if refused else error
