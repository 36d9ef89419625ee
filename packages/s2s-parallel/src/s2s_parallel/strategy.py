"""Lightning's ModelParallelStrategy with context parallelism and copies of the weights, and with safe checkpoints."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from s2s_parallel.atomic_file import CheckpointWriteError
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_parallel.checkpoint_files import read_file
from s2s_parallel.checkpoint_folder import META, whole_path
from s2s_parallel.checkpoint_readers import TensorsReader, open_folder
from s2s_parallel.checkpoint_saver import CheckpointSaver
from s2s_parallel.distributed_checkpoint import split_checkpoint
from s2s_parallel.fsdp import release
from s2s_parallel.mesh import MeshSizes, build_mesh, resolve_mesh
from s2s_parallel.optimizer_names import name_state, names_by_group
from s2s_parallel.sharded_loading import ShardedLoader, model_state

logger = logging.getLogger(__name__)


class MeshStrategy(ModelParallelStrategy):
    """Trains a module whose `configure_model` shards it over `self.device_mesh`.

    A checkpoint loads on any other mesh, and on one device or DDP with `AtomicCheckpointIO`. What one of those saved
    loads on any mesh. It overrides hooks of Lightning's strategies as they are in 2.5.6.

    Args:
        data_parallel_size: processes with data of their own; "auto": all that tensor parallelism leaves.
        tensor_parallel_size: processes that share each matrix; "auto": 1.
        replicate_size: copies of the weights among the data parallel processes (HSDP); 1 shards them over all.
        save_distributed_checkpoint: each process writes its part of a checkpoint, a folder. False: rank 0 writes it
            all, as one file.
        process_group_backend: by default NCCL for GPUs with gloo for the CPU beside it, or gloo.
        timeout: how long a process waits for the others.
        async_checkpoint: while training, write a folder in the background; it takes host memory for the process's part.
        context_parallel_size: processes that share the frames of each dialogue; 1: none.
    """

    def __init__(
        self,
        data_parallel_size: int | Literal["auto"] = "auto",
        tensor_parallel_size: int | Literal["auto"] = "auto",
        replicate_size: int = 1,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
        async_checkpoint: bool = True,
        context_parallel_size: int = 1,
    ) -> None:
        super().__init__(
            data_parallel_size, tensor_parallel_size, save_distributed_checkpoint, process_group_backend, timeout
        )
        self._replicate_size, self._context_parallel_size = replicate_size, context_parallel_size
        self._async_checkpoint = async_checkpoint
        self._is_running = False  # between setup and teardown, which waits for what is saved in the background
        self._saver: CheckpointSaver | None = None
        self._group: dist.ProcessGroup | None = None
        self._loader: ShardedLoader | None = None  # of the folder that is being restored
        self._restored = Path()

    def check_mesh(self, world_size: int) -> None:
        """Check the sizes before processes are started.

        Raises:
            ValueError: they don't make up `world_size` processes.
        """
        self._sizes(world_size)

    def setup_environment(self) -> None:
        """Start the process group and lay out the mesh.

        Raises:
            ValueError: the sizes don't make up the number of processes.
        """
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()
        sizes = self._sizes(self.world_size)
        self._data_parallel_size, self._tensor_parallel_size = sizes.data_parallel_size, sizes.tensor_parallel_size
        self._device_mesh = build_mesh(sizes, self.root_device.type)
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh
        if self._checkpoint_io is None:
            self.checkpoint_io = AtomicCheckpointIO()
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
            self._saver = self._make_saver(self._group)

    def _sizes(self, world_size: int) -> MeshSizes:
        return resolve_mesh(
            world_size,
            self._data_parallel_size,
            self._tensor_parallel_size,
            self._replicate_size,
            self._context_parallel_size,
        )

    def setup(self, trainer: Trainer) -> None:
        """Place the model and make its optimizers."""
        super().setup(trainer)
        self._is_running = True

    def model_to_device(self) -> None:
        """Move to the device what isn't there yet; weights that FSDP offloads stay where it keeps them."""
        assert self.model is not None
        self.model._apply(lambda tensor: tensor if _is_offloaded(tensor) else tensor.to(self.root_device))

    def teardown(self) -> None:
        """Wait for the save in the background.

        Raises:
            CheckpointWriteError: it failed.
        """
        self._is_running = False
        self._loader = None
        try:
            self.wait_for_save()
        finally:
            super().teardown()

    def on_exception(self, exception: BaseException) -> None:
        """Let go of gathered weights, and wait for the save in the background, so that it isn't lost with the run."""
        super().on_exception(exception)
        if self.lightning_module is not None:
            release(self.lightning_module)
        try:
            self.wait_for_save()
        except CheckpointWriteError as error:  # what ended the run is to be seen, not this
            logger.error("%s", error)

    # --- saving ----------------------------------------------------------------------------------------------

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimizers are filled where Lightning fills them: after the hooks that may change the checkpoint."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights: DTensors for a folder; for a file whole tensors, on rank 0 alone."""
        assert self.lightning_module is not None
        state = model_state(self.lightning_module)
        return state if self._save_distributed_checkpoint else self._gather(state)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state: for a folder by parameter name; for a file by number, whole, on rank 0 alone."""
        optimizer = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        assert self.lightning_module is not None
        state: dict[str, Any] = optimizer.state_dict()
        if self._save_distributed_checkpoint:
            return name_state(state, names_by_group(optimizer, self.lightning_module))
        return {**state, "state": {number: self._gather(values) for number, values in state["state"].items()}}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write the folder or file `filepath`; a folder in the background while training.

        Raises:
            CheckpointWriteError: the system refused, this time or at the save before.
            ValueError: storage options were given; this writes local files only.
        """
        if storage_options is not None:
            raise ValueError("MeshStrategy writes local files and takes no storage_options")
        path = Path(self.broadcast(str(filepath))).absolute()
        assert self._saver is not None
        if self._save_distributed_checkpoint:
            self._saver.save(checkpoint, path, in_background=self._async_checkpoint and self._is_running)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, path)

    def remove_checkpoint(self, filepath: str | os.PathLike[str]) -> None:
        """Remove the checkpoint `filepath`, when the one that is being saved is whole."""
        path = Path(filepath).absolute()
        if self.is_global_zero:
            assert self._saver is not None
            self._saver.when_saved(lambda: self.checkpoint_io.remove_checkpoint(path))

    def is_saving(self, filepath: str | os.PathLike[str]) -> bool:
        """Whether `filepath` is being written in the background."""
        return self._saver is not None and self._saver.is_saving(Path(filepath).absolute())

    def wait_for_save(self) -> None:
        """Wait until what is written in the background is whole.

        Raises:
            CheckpointWriteError: it couldn't be written.
        """
        if self._saver is not None:
            self._saver.wait()

    def _make_saver(self, group: dist.ProcessGroup) -> CheckpointSaver:
        return CheckpointSaver(group)

    def _gather(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values with whole tensors on the CPU, on rank 0; all ranks take part, the others keep nothing."""
        whole = {}
        for name, value in values.items():
            full = value.full_tensor() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                whole[name] = full.cpu() if isinstance(full, Tensor) else full
        return whole

    # --- loading ---------------------------------------------------------------------------------------------

    def load_checkpoint(self, checkpoint_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the folder or file `checkpoint_path`.

        Model and optimizers are filled later, when Lightning asks for it. Of a folder only what isn't their tensors is
        returned, with the weights on the meta device for hooks that look at names and shapes.

        Raises:
            FileNotFoundError: there is no such checkpoint.
            CheckpointReadError: it is damaged, or holds more than tensors and plain containers.
        """
        assert self._saver is not None
        assert self._group is not None
        self._saver.wait()
        given = Path(self.broadcast(str(checkpoint_path))).absolute()
        path = whole_path(given)
        self._loader, self._restored = None, path
        if not path.exists():
            raise FileNotFoundError(f"no checkpoint at {given}")
        if path.is_file():
            return read_file(path, mmap=True)
        self._loader = ShardedLoader(path, open_folder(path), self._group)
        checkpoint = read_file(path / META)
        return {**checkpoint, "state_dict": self._loader.shapes()}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Fill the weights of this process.

        Raises:
            ValueError: the checkpoint is of another model.
        """
        assert self.lightning_module is not None
        loader = self._loader or self._from_memory({"state_dict": checkpoint["state_dict"]})
        loader.load_model(self.lightning_module, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Fill the optimizers of this process.

        Raises:
            ValueError: the parameter groups differ.
        """
        assert self.lightning_module is not None
        states = list(checkpoint["optimizer_states"])
        loader = self._loader
        if loader is None:
            names = [names_by_group(optimizer, self.lightning_module) for optimizer in self.optimizers]
            states = [name_state(state, groups) for state, groups in zip(states, names, strict=True)]
            loader = self._from_memory({"optimizer_states": states})
        for index, (optimizer, state) in enumerate(zip(self.optimizers, states, strict=True)):
            loader.load_optimizer(optimizer, index, state, self.lightning_module)
        self._loader = None

    def _from_memory(self, checkpoint: Mapping[str, Any]) -> ShardedLoader:
        assert self._group is not None
        tensors, _ = split_checkpoint(checkpoint)
        return ShardedLoader(self._restored, TensorsReader(tensors), self._group)

    def _get_process_group_backend(self) -> str:
        if self._process_group_backend is None and self.root_device.type == "cuda":
            return "cpu:gloo,cuda:nccl"  # asynchronous checkpoints and offloaded gradients meet on the CPU
        return super()._get_process_group_backend()


def _is_offloaded(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and tensor.device.type == "cpu" != tensor.device_mesh.device_type
