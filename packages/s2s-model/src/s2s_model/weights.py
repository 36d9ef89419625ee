"""Weights from a file into a model: every tensor has its place, or nothing is loaded."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2s_model.llm import exact_positions
from s2s_model.names import first_line
from s2s_parallel.mismatch import explain_mismatch

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
DTYPES = ("float32", "bfloat16", "float16")


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each tensor once: of tied parameters the first name is kept.

    Raises:
        ValueError: the tensors are sharded over devices.
    """
    from torch.distributed.tensor import DTensor

    seen: set[int] = set()
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, DTensor):
            raise ValueError(f"{name} is sharded over devices: save a checkpoint, and export that on one device")
        if id(value) not in seen:
            seen.add(id(value))
            state[name] = value.detach()
    return state


def put_weights(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Make the tensors of `state` the weights of `model`, in the dtype they have.

    Parameters of the model that are tied stay tied, and `state` may name them once. The tensors aren't copied.

    Args:
        model: built on a device that holds data (not meta).
        state: tensors on the model's device, by the names of its state dict.
        source: what errors call the place where `state` was read.

    Raises:
        ValueError: names or shapes differ, or tied parameters come with different values. The model is then unchanged.
    """
    own = model.state_dict(keep_vars=True)
    aliases = _aliases(own)
    complete = dict(state)
    for names in aliases:
        present = [name for name in names if name in state]
        for name in names if present else ():
            complete.setdefault(name, state[present[0]])
        if problem := _tied_differ(present, state):
            raise ValueError(f"{source}: {problem}")
    if problem := explain_mismatch(complete, own):
        raise ValueError(f"the weights in {source} don't fit the model that its config describes: {problem}")
    for name, value in own.items():
        value.data = complete[name]
    _cast_the_rest(model)


def _aliases(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Groups of names that stand for one parameter."""
    groups: dict[int, list[str]] = {}
    for name, value in state.items():
        groups.setdefault(id(value), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _tied_differ(names: list[str], state: Mapping[str, Tensor]) -> str | None:
    for name in names[1:]:
        if not torch.equal(state[names[0]], state[name]):
            return (
                f"{names[0]} and {name} differ, but the model has one matrix for both (the LLM's config says "
                "tie_word_embeddings): set it to false in the LLM's config.json"
            )
    return None


def _cast_the_rest(model: nn.Module) -> None:
    """Bring what isn't saved (tables of positions) to the dtype of the weights, as casting the model would have."""
    for part in [model] if _one_dtype(model) else model.children():
        if dtype := _one_dtype(part):
            with exact_positions(part):
                part.to(dtype=dtype)


def _one_dtype(module: nn.Module) -> torch.dtype | None:
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def check_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The floating dtype that torch or a name such as "bfloat16" means.

    Raises:
        ValueError: it isn't one that a model runs in.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}: use one of {', '.join(DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def cast_weights(model: nn.Module, dtype: torch.dtype | str) -> None:
    """Bring weights and buffers to a floating dtype; see `check_dtype`."""
    model.to(dtype=check_dtype(dtype))


def read_safetensors(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`, or the files that its index names.

    Raises:
        FileNotFoundError: there is neither, or a file of the index is missing.
        ValueError: a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    index = folder / SAFETENSORS_INDEX
    names = [SAFETENSORS]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: the folder isn't whole, copy or save it anew")
        try:
            state.update(load_file(folder / name))
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged ({error}): copy or save it anew") from error
    return state


def read_checkpoint(path: Path, trusted: bool = False) -> dict[str, Any]:
    """Read a Lightning checkpoint to the CPU: a file, or a folder that several processes wrote in parts.

    Args:
        path: the file or folder.
        trusted: run what pickles in it ask for. Only for files whose origin is known.

    Returns:
        The checkpoint; of a folder without the optimizer's state.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is damaged, or holds more than tensors and plain containers and isn't `trusted`.
    """
    from s2s_parallel.checkpoint import AtomicCheckpointIO, CheckpointReadError, is_complete
    from s2s_parallel.checkpoint_files import read_folder
    from s2s_parallel.checkpoint_folder import whole_path

    folder = whole_path(path)
    try:
        if folder.is_dir():
            return read_folder(folder, trusted, with_optimizers=False)
        return AtomicCheckpointIO(trusted).load_checkpoint(path)
    except CheckpointReadError as error:
        if trusted or not isinstance(error.__cause__, pickle.UnpicklingError) or not is_complete(path):
            raise
        raise ValueError(
            f"checkpoint {path} holds Python objects, and reading them runs code ({first_line(error.__cause__)}): "
            "if you trust where it comes from, say so with trusted=True"
        ) from error
