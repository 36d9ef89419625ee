"""Checkpoints that all processes write and read together: a folder with a part from each of them.

The layout is that of Lightning's ModelParallelStrategy: tensors are named `state_dict.NAME` and
`optimizer_N.state.NAME.KEY`, and torch.distributed.checkpoint stores them; all else is in `meta.pt`. As tensors are
stored by their place in the whole one, any number of processes loads what any other number saved.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader, WriteResult
from torch.distributed.tensor import DTensor, Shard
from torch.futures import Future

from s2s_parallel.atomic_file import sync_folder
from s2s_parallel.checkpoint_folder import META, discard, partial_path, put_in_place
from s2s_parallel.checkpoint_readers import CheckpointReadError, damaged, first_line

MODEL_PREFIX = "state_dict."


def optimizer_prefix(index: int) -> str:
    """What the names of the tensors of optimizer `index` begin with."""
    return f"optimizer_{index}.state."


def split_checkpoint(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the tensors of model and optimizers out of a Lightning checkpoint, whose optimizer states are by name.

    Returns:
        The tensors by the names they are stored under, and all else.
    """
    tensors, rest = _split(MODEL_PREFIX, checkpoint.get("state_dict", {}))
    meta = {**checkpoint, "state_dict": rest}
    if "optimizer_states" in checkpoint:
        meta["optimizer_states"] = []
        for index, state in enumerate(checkpoint["optimizer_states"]):
            others = {}
            for name, of_parameter in state["state"].items():
                found, others[name] = _split(f"{optimizer_prefix(index)}{name}.", of_parameter)
                tensors |= found
            meta["optimizer_states"].append({**state, "state": others})
    return tensors, meta


def _split(prefix: str, values: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {prefix + key: value for key, value in values.items() if isinstance(value, Tensor)}
    return tensors, {key: value for key, value in values.items() if not isinstance(value, Tensor)}


def as_bytes(meta: Mapping[str, Any]) -> bytes:
    """`meta` as meta.pt has it; made when a save begins, as training goes on to change what is in it."""
    file = io.BytesIO()
    torch.save(dict(meta), file)
    return file.getvalue()


class FolderWriter(FileSystemWriter):
    """Writes a checkpoint's parts beside `path`, and puts the folder in place when every process has written its own.

    Args:
        path: the folder, on storage that all processes share.
        meta: the content of meta.pt; only that of the first process is used.
    """

    def __init__(self, path: Path, meta: bytes) -> None:
        super().__init__(partial_path(path), sync_files=True)
        self.target = path
        self.fs = self._files = _Files()
        self._meta = meta

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is: what a killed save left is cleared by one process, below."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Make the folder anew; the first process does it, before any writes."""
        discard(Path(self.path))
        Path(self.path).mkdir(parents=True)
        return super().prepare_global_plan(plans)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's part.

        Raises:
            OSError: the system refused; torch's zip writer would replace it by an error of its own.
        """
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            raise self._files.error or error from error

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the lists and put the folder in place; the first process does it, when all parts are on the disk."""
        with (Path(self.path) / META).open("wb") as file:
            file.write(self._meta)
            file.flush()
            os.fsync(file.fileno())
        super().finish(metadata, results)
        sync_folder(Path(self.path))
        put_in_place(Path(self.path), self.target)


class _Files(FileSystem):
    """Torch's file system; keeps the first error that a write gave."""

    def __init__(self) -> None:
        self.error: OSError | None = None

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        with super().create_stream(path, mode) as raw:
            yield _Stream(raw, self._keep)  # type: ignore[misc]  # the part that the writer uses

    def _keep(self, error: OSError) -> None:
        self.error = self.error or error


class _Stream:
    def __init__(self, raw: Any, keep: Callable[[OSError], None]) -> None:
        self._raw, self._keep = raw, keep

    def write(self, data: bytes) -> int:
        try:
            return int(self._raw.write(data))
        except OSError as error:
            self._keep(error)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


def check_blocks(tensors: Mapping[str, Tensor]) -> None:
    """Refuse a tensor of which a process has several pieces: torch would store them as if they were one.

    Raises:
        ValueError: with its name.
    """
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and not all(
            _is_one_block(tensor, axis) for axis in range(len(tensor.placements))
        ):
            raise ValueError(
                f"{name} is shared between devices in several pieces each ({tensor.placements}), which a checkpoint in"
                " parts can't keep: share it in one piece, or set save_distributed_checkpoint to false"
            )


def _is_one_block(tensor: DTensor, axis: int) -> bool:
    """FSDP over tensor parallelism strides too, by exactly what the later axes divide: there the part is one block."""
    split = getattr(tensor.placements[axis], "split_factor", 1)
    later = 1
    for other in range(axis + 1, len(tensor.placements)):
        placement = tensor.placements[other]
        if isinstance(placement, Shard) and placement.dim == getattr(tensor.placements[axis], "dim", None):
            later *= tensor.device_mesh.size(other)
    return bool(split in (1, later))


def load_tensors(tensors: Mapping[str, Tensor], reader: StorageReader, group: ProcessGroup | None, path: Path) -> None:
    """Fill `tensors` in place with what is stored under their names; each process its own part.

    Args:
        tensors: by stored names, of stored shapes; the dtype may differ.
        reader: where they are stored.
        group: the processes that load together; None: this one alone.
        path: what errors call the checkpoint.

    Raises:
        CheckpointReadError: the same on all processes.
    """
    check_blocks(tensors)
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    with warnings.catch_warnings():  # it warns of loading alone, which is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            load(dict(tensors), storage_reader=reader, planner=planner, process_group=group, no_dist=group is None)
        except (CheckpointException, OSError, RuntimeError, EOFError) as error:
            raise CheckpointReadError(damaged(path, first_line(causes(error)[0]))) from error


def causes(error: BaseException) -> list[BaseException]:
    """What went wrong on each process that failed; the error itself if it isn't torch's collection of them."""
    return [wrapped[0] for wrapped in error.failures.values()] if isinstance(error, CheckpointException) else [error]


def stored_tensors(reader: StorageReader, prefix: str) -> dict[str, TensorStorageMetadata]:
    """The tensors whose stored names begin with `prefix`, by the rest of the name."""
    return {
        name.removeprefix(prefix): stored
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(stored, TensorStorageMetadata)
    }
