"""A checkpoint into a model and optimizers that are shared between processes, each of which reads its own part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.storage import StorageReader
from torch.optim import Optimizer

from s2s_parallel.distributed_checkpoint import MODEL_PREFIX, load_tensors, optimizer_prefix, stored_tensors
from s2s_parallel.mismatch import explain_mismatch
from s2s_parallel.optimizer_names import check_groups, names_by_group, number_state, unwrapped


def model_state(module: nn.Module) -> dict[str, Any]:
    """The state dict under the names that it has on one device; tensors may be DTensors, and aren't copied."""
    return {unwrapped(name): value for name, value in module.state_dict().items()}


class ShardedLoader:
    """Fills a model and its optimizers from one checkpoint; each method has to be called on all processes.

    Args:
        path: what errors call the checkpoint.
        reader: where its tensors are.
        group: the processes that load together.
    """

    def __init__(self, path: Path, reader: StorageReader, group: ProcessGroup) -> None:
        self._path = path
        self._reader = reader
        self._group = group

    def shapes(self) -> dict[str, Tensor]:
        """The weights that are stored, on the meta device: their names, shapes and dtypes."""
        return {
            name: torch.empty(stored.size, dtype=stored.properties.dtype, device="meta")
            for name, stored in stored_tensors(self._reader, MODEL_PREFIX).items()
        }

    def load_model(self, module: nn.Module, strict: bool = True) -> None:
        """Fill the weights of `module` in place. Tied ones stay tied, and may be stored under any of their names.

        Raises:
            ValueError: names or shapes differ; nothing is loaded. Unless `strict`, only names that both have count.
            CheckpointReadError: the checkpoint is damaged.
        """
        stored = self.shapes()
        own = {
            unwrapped(name): value
            for name, value in module.state_dict(keep_vars=True).items()
            if isinstance(value, Tensor)
        }
        found = {id(value) for name, value in own.items() if name in stored}
        wanted = {name: value for name, value in own.items() if name in stored or id(value) not in found}
        if not strict:
            wanted = {name: value for name, value in wanted.items() if name in stored}
            stored = {name: value for name, value in stored.items() if name in wanted}
        if problem := explain_mismatch(stored, wanted):
            raise ValueError(
                f"checkpoint {self._path} is of another model: {problem}. Use the config it was trained with, or start"
                " anew with another name=..."
            )
        tensors = {MODEL_PREFIX + name: value.detach() for name, value in wanted.items()}
        load_tensors(tensors, self._reader, self._group, self._path)

    def load_optimizer(self, optimizer: Optimizer, index: int, saved: Mapping[str, Any], module: nn.Module) -> None:
        """Fill an optimizer of `module`'s parameters: their states from the reader, all else from `saved`.

        Args:
            optimizer: the one to fill.
            index: its place among the run's optimizers.
            saved: its `param_groups`, by parameter name, and what in its states isn't a tensor.
            module: what names the parameters.

        Raises:
            ValueError: the parameter groups differ.
            CheckpointReadError: the checkpoint is damaged.
        """
        names = names_by_group(optimizer, module)
        check_groups(saved["param_groups"], names)
        aliases = _aliases(module)
        stored: dict[str, dict[str, TensorStorageMetadata]] = {}
        for stored_name, tensor in stored_tensors(self._reader, optimizer_prefix(index)).items():
            name, key = stored_name.rsplit(".", 1)
            stored.setdefault(name, {})[key] = tensor
        wanted: dict[str, Tensor] = {}
        states: dict[str, dict[str, Any]] = {}
        for own_names, group in zip(names, optimizer.param_groups, strict=True):
            for own_name, parameter in zip(own_names, group["params"], strict=True):
                name = next((alias for alias in aliases[own_name] if alias in stored), own_name)
                of_parameter = {key: _room_for(tensor, key, parameter) for key, tensor in stored.get(name, {}).items()}
                wanted |= {f"{optimizer_prefix(index)}{name}.{key}": value for key, value in of_parameter.items()}
                if values := {**saved["state"].get(name, {}), **of_parameter}:
                    states[own_name] = values
        load_tensors(wanted, self._reader, self._group, self._path)
        groups = [{**group, "params": own} for group, own in zip(saved["param_groups"], names, strict=True)]
        optimizer.load_state_dict(number_state({"state": states, "param_groups": groups}))


def _aliases(module: nn.Module) -> dict[str, Sequence[str]]:
    """The names of each parameter, by each of them."""
    groups: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(unwrapped(name))
    return {name: names for names in groups.values() for name in names}


def _room_for(stored: TensorStorageMetadata, key: str, parameter: Tensor) -> Tensor:
    """An empty tensor, shared between devices as its parameter is if it has its shape (as moments have)."""
    if stored.size == parameter.shape and key != "step":
        return torch.zeros_like(parameter, dtype=stored.properties.dtype, requires_grad=False)
    return torch.zeros(stored.size, dtype=stored.properties.dtype)
