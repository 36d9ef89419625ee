"""Where a checkpoint's tensors come from, whole or in parts: a folder, or a file's tensors in memory."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from s2s_parallel.checkpoint_folder import META, METADATA

_PLAIN_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},
}


class CheckpointReadError(ValueError):
    """A checkpoint is damaged, or holds objects that aren't safe to load. `str()` is one line."""


class FolderReader(FileSystemReader):
    """Torch's reader of a folder, whose list of tensors is a pickle; here it can't run code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What tensors there are, and in which file.

        Raises:
            pickle.UnpicklingError: the list holds objects that no list of tensors has.
        """
        with (Path(self.path) / METADATA).open("rb") as file:
            metadata = _PlainUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError(f"it holds a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN_CLASSES.get(module, ()) or (module == "torch" and _is_dtype(name)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no list of tensors has")


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)


def open_folder(folder: Path) -> FolderReader:
    """A reader of `folder`, checked to be whole: its lists are there, and each file is as long as they say.

    Raises:
        CheckpointReadError: with what is missing or damaged.
    """
    for name in (METADATA, META):
        if not (folder / name).is_file():
            raise CheckpointReadError(damaged(folder, f"it has no {name}"))
    reader = FolderReader(folder)
    try:
        stored = reader.read_metadata().storage_data or {}
    except Exception as error:  # a damaged pickle may raise anything
        raise CheckpointReadError(damaged(folder, f"{METADATA}: {first_line(error)}")) from error
    lengths: dict[str, int] = {}
    for part in stored.values():
        lengths[part.relative_path] = max(lengths.get(part.relative_path, 0), part.offset + part.length)
    for name, length in lengths.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found is None:
            raise CheckpointReadError(damaged(folder, f"its part {name} is missing"))
        if found < length:
            raise CheckpointReadError(damaged(folder, f"its part {name} has {found:,} bytes of {length:,}"))
    return reader


def first_line(error: BaseException) -> str:
    """An error's message, cut to a line; its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def damaged(path: Path, problem: str) -> str:
    """The message about a checkpoint that can't be read."""
    return (
        f"checkpoint {path} can't be read, it is damaged or no checkpoint ({problem}): move it away and resume from"
        " another"
    )


class TensorsReader(StorageReader):
    """Whole tensors in memory as if they were stored, so that each process takes the part that it needs."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Each tensor is one piece."""
        return Metadata({name: _as_stored(tensor) for name, tensor in self._tensors.items()})

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what `plan` asks for."""
        for item in plan.items:
            part = self._tensors[item.storage_index.fqn]
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(dim, offset, length)
            target = planner.resolve_tensor(item).detach()
            target.copy_(part)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing is kept between reads."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """There is none."""
        return True


def _as_stored(tensor: Tensor) -> TensorStorageMetadata:
    chunk = ChunkStorageMetadata(offsets=torch.Size([0] * tensor.dim()), sizes=tensor.size())
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), tensor.size(), [chunk])
