"""Reads a checkpoint on one process: a file, or a folder in parts, which gives what a file would."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.storage import StorageReader

from s2s_parallel.checkpoint_folder import META
from s2s_parallel.checkpoint_readers import CheckpointReadError, damaged, first_line, open_folder
from s2s_parallel.distributed_checkpoint import MODEL_PREFIX, load_tensors, optimizer_prefix, stored_tensors
from s2s_parallel.optimizer_names import number_state


def read_file(path: Path, trusted: bool = False, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read the file `path`.

    Args:
        path: what torch.save wrote.
        trusted: read any pickle. Only for files whose origin is known.
        map_location: where to put tensors.
        mmap: read tensors from the file only as they are used.

    Raises:
        CheckpointReadError: the file is damaged or, unless trusted, holds more than plain containers.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=not trusted, mmap=mmap)
    except pickle.UnpicklingError as error:
        if trusted or not zipfile.is_zipfile(path):
            raise CheckpointReadError(damaged(path, first_line(error))) from error
        raise CheckpointReadError(
            f"checkpoint {path} holds more than tensors and plain containers ({first_line(error)}): only"
            " if you trust its origin, read it with AtomicCheckpointIO(trusted=True)"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointReadError(damaged(path, first_line(error))) from error
    return state


def read_folder(folder: Path, trusted: bool = False, with_optimizers: bool = True) -> dict[str, Any]:
    """Read a checkpoint in parts on one process, whole and to the CPU, as a run on one device would have saved it.

    Args:
        folder: the checkpoint.
        trusted: read any pickle in meta.pt. Only for files whose origin is known.
        with_optimizers: read the states of the optimizers too, which are often twice the weights.

    Raises:
        CheckpointReadError: it is damaged, or holds more than tensors and plain containers.
    """
    reader = open_folder(folder)
    checkpoint = read_file(folder / META, trusted)
    optimizers = checkpoint.pop("optimizer_states", None)
    prefixes = [MODEL_PREFIX, *(optimizer_prefix(index) for index in range(len(optimizers or ()) * with_optimizers))]
    tensors = _read_all(reader, prefixes, folder)
    checkpoint["state_dict"] = checkpoint.get("state_dict", {}) | _without(MODEL_PREFIX, tensors)
    if optimizers is not None and with_optimizers:
        checkpoint["optimizer_states"] = [
            number_state(_with_tensors(state, _without(optimizer_prefix(index), tensors)))
            for index, state in enumerate(optimizers)
        ]
    return checkpoint


def _read_all(reader: StorageReader, prefixes: Iterable[str], folder: Path) -> dict[str, Tensor]:
    tensors = {
        prefix + name: torch.empty(stored.size, dtype=stored.properties.dtype)
        for prefix in prefixes
        for name, stored in stored_tensors(reader, prefix).items()
    }
    load_tensors(tensors, reader, None, folder)
    return tensors


def _without(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _with_tensors(state: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    of_parameters = {name: dict(values) for name, values in state["state"].items()}
    for stored_name, tensor in tensors.items():
        name, key = stored_name.rsplit(".", 1)
        of_parameters.setdefault(name, {})[key] = tensor
    return {**state, "state": of_parameters}
