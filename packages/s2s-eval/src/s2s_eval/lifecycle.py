"""A scoring model's life: loaded at first use, off the GPU between validations, freed in the end."""

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from s2s_eval.memory import GIB, forget_frames, free_memory, host_memory_after

log = logging.getLogger(__name__)

KEEP = ("auto", "always", "never")


class HeldModel(Protocol):
    """A model in memory."""

    @property
    def is_on_gpu(self) -> bool:
        """Whether it holds GPU memory now."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes its weights take in host memory."""
        ...

    def to_device(self) -> None:
        """Move to the device it was made for; nothing where it is there already."""
        ...

    def to_host(self) -> None:
        """Move to host memory; nothing where it is there already."""
        ...

    def close(self) -> None:
        """Free the model. Calling it twice is fine; using the model isn't allowed afterwards."""
        ...


ModelT = TypeVar("ModelT", bound=HeldModel)


class LazyModel(ABC, Generic[ModelT]):
    """The base of every scorer that holds a model; a subclass says how to load it.

    Nothing is loaded before :meth:`_running`, so a rank that scores nothing never loads.
    """

    def __init__(self, name: str, device: str = "auto", keep: str = "auto") -> None:
        """Set what the log calls the model, and where it runs.

        ``device`` is "cpu", "cuda", "cuda:1", or "auto": see :meth:`use_device`. ``keep`` says whether weights stay in
        host memory after :meth:`release`: "always", "never", or "auto" (if at least 4 GiB and a tenth of the memory
        stay available). Raises ValueError for another ``keep`` and for a device that isn't there.
        """
        if keep not in KEEP:
            raise ValueError(f"keep={keep!r} of the scoring model {name}: known are {', '.join(KEEP)}")
        check_device(device)
        self._name = name
        self._chosen_device = device
        self._device = default_device() if device == "auto" else device
        self._keep = keep
        self._model: ModelT | None = None
        self._told: bool | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are in memory now, the host's or a GPU's."""
        return self._model is not None

    @property
    def is_on_gpu(self) -> bool:
        """Whether the model holds GPU memory now."""
        return self._model is not None and self._model.is_on_gpu

    def use_device(self, device: str) -> None:
        """Run on this device ("cpu", "cuda:1") if the config leaves it to us."""
        if self._chosen_device == "auto" and device != self._device:
            self.close()
            self._device = device

    def release(self) -> None:
        """Leave the GPU. The weights stay in host memory where ``keep`` allows it, else they are freed."""
        model = self._model
        if model is None:
            return
        was_on_gpu = model.is_on_gpu
        if not self._is_kept(model.size_bytes if was_on_gpu else 0):
            self.close()
            return
        if was_on_gpu:
            try:
                with torch.inference_mode(False):
                    model.to_host()
            except Exception:  # of a GPU in error: what can't be moved is dropped
                log.warning("%s could not be moved to host memory and is freed", self._name, exc_info=True)
                self.close()
            free_memory()

    def close(self) -> None:
        """Free everything, loaded or not."""
        model, self._model = self._model, None
        if model is not None:
            model.close()
            free_memory()

    @abstractmethod
    def _load(self, device: str) -> ModelT:
        """Load the model for this device; it may still be in host memory. Raises ValueError where that fails."""

    @contextmanager
    def _running(self) -> Iterator[ModelT]:
        """Give the model, loaded and on its device. An error inside leaves no activations in memory."""
        outer = sys.exception()
        try:
            # Validation runs in inference mode. Weights that are made or moved there can't be moved outside it.
            with torch.inference_mode(False):
                if self._model is None:
                    self._model = self._load(self._device)
                _move_to_device(self._model)
            yield self._model
        except BaseException as error:
            forget_frames(error, outer)
            raise

    def _is_kept(self, extra_bytes: int) -> bool:
        roomy, left = host_memory_after(extra_bytes)
        kept = self._keep == "always" or (self._keep == "auto" and roomy)
        if kept != self._told:
            where = "stays in host memory" if kept else "is freed, and read from disk again at the next"
            log.info(
                "%s %s after validation: keep=%s, host memory available then: %.1f GiB",
                self._name, where, self._keep, left / GIB,
            )  # fmt: skip
            self._told = kept
        return kept


class TorchModel:
    """A torch module as a :class:`HeldModel`. Give it a module in host memory: half a load then costs no GPU memory."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._module: Any = module.eval()
        self._device = torch.device(device)
        self._size_bytes = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
        self._moved = False

    @property
    def is_on_gpu(self) -> bool:
        """Whether it holds GPU memory now."""
        return self._moved

    @property
    def size_bytes(self) -> int:
        """Bytes of its parameters and buffers."""
        return self._size_bytes

    def to_device(self) -> None:
        """Move to the device."""
        if self._device.type != "cpu" and not self._moved:
            self._moved = True  # already while it moves: it may fail midway
            _move(self._module, self._device)

    def to_host(self) -> None:
        """Move to host memory."""
        if self._moved:
            _move(self._module, torch.device("cpu"))
            self._moved = False

    def close(self) -> None:
        """Free the module."""
        self._module = None
        self._moved = False


def _move(module: nn.Module, device: torch.device) -> None:
    """Move a module, and tensors that it keeps as plain attributes, which ``nn.Module.to`` leaves where they are."""
    module.to(device)
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and value.device != device:
                setattr(part, name, value.to(device))


def default_device() -> str:
    """Return the device of "auto" where nothing else is known."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise ValueError unless ``device`` is "auto" or a device that torch knows and this machine has."""
    if device == "auto":
        return
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device {device!r} of a scoring model: give auto, cpu, cuda or e.g. cuda:1")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} of a scoring model: this process sees {torch.cuda.device_count()} CUDA devices: give "
            "auto or cpu"
        )


def one_line(error: BaseException) -> str:
    """Return the error's first line, or its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _move_to_device(model: HeldModel) -> None:
    try:
        model.to_device()
    except BaseException:  # out of memory halfway: the half that moved goes back
        model.to_host()
        free_memory()
        raise
