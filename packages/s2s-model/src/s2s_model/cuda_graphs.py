"""Functions of tensors at fixed addresses, which a GPU replays as one CUDA graph instead of kernel by kernel."""

import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor

from s2s_parallel.graph_capture import autocast_dtype, capture, uncached_autocast

log = logging.getLogger(__name__)
WARM_UP = 2  # calls before the capture: libraries load their kernels, torch.compile compiles
SYNC = "called a synchronizing CUDA operation"  # torch's warning
NOTICE = "Synchronization debug mode"  # and what it says of the mode itself


class GraphedFunction:
    """`function(*inputs)` that reads and writes tensors in place, at the same addresses in each call.

    The first calls run it as it is. On a GPU the next one captures it, and that one and all later ones replay it: what
    Python does in it is then done no more. So it must depend on nothing but tensors, and what it gives has to lie in
    tensors that its owner keeps. A function that waits for the device can't be captured: it goes on as it is, and the
    log says why.

    Args:
        function: a method of the object that keeps this one; called without gradients, it changes tensors in place.
        device: where its tensors are.
        generator: where it draws from; None is torch's global one.
        why_eager: why it can't be captured, where that is known.
        may_wait: it waits for the device when it runs as it is, but not when captured.
    """

    def __init__(
        self,
        function: Callable[..., None],
        device: torch.device,
        generator: torch.Generator | None = None,
        why_eager: str | None = None,
        may_wait: bool = False,
    ) -> None:
        self._method = WeakMethod(function)  # else the owner's memory would wait for the garbage collector
        self._device = device
        self._is_on_gpu = device.type == "cuda"
        self._autocast = autocast_dtype(device.type)
        self._generator = generator
        self._why_eager = why_eager
        self._may_wait = may_wait
        self._inputs: tuple[Tensor, ...] = ()
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def _function(self) -> Any:
        function = self._method()
        assert function is not None, "the object whose method this runs is gone"
        return function

    @property
    def is_captured(self) -> bool:
        """Whether calls replay a graph."""
        return self._graph is not None

    @property
    def may_be_captured(self) -> bool:
        """Whether calls replay a graph, or will, as far as is known."""
        return self._is_on_gpu and self._why_eager is None

    @torch.inference_mode(False)  # what is kept must be of use within and without
    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> None:
        """Run or replay it.

        Args:
            inputs: of the same shapes, dtypes and device in each call; they are copied.
        """
        autocast = autocast_dtype(self._device.type)
        if not self._num_calls or self._autocast != autocast:  # anew, for it computes otherwise there
            self._num_calls, self._graph, self._autocast = 0, None, autocast
            self._inputs = tuple(value.clone() for value in inputs)
        for kept, value in zip(self._inputs, inputs, strict=True):
            assert kept.shape == value.shape, f"an input of shape {list(value.shape)}, not {list(kept.shape)}"
            kept.copy_(value)
        self._num_calls += 1
        with uncached_autocast(self._device.type) if self.may_be_captured else nullcontext():
            self._run()

    def _run(self) -> None:
        if self._graph is None and self._num_calls > WARM_UP and self.may_be_captured:
            self._graph = self._capture()
        if self._graph is not None:
            self._graph.replay()
        elif self._num_calls == WARM_UP and self._is_on_gpu:
            self._rehearse()
        else:
            self._function(*self._inputs)

    def _rehearse(self) -> None:
        """Run it before it is captured, to know whether it can be."""
        if self._why_eager is None and not self._may_wait:
            self._run_and_look_for_waits()
        else:
            self._function(*self._inputs)
        if self._why_eager is not None:
            self._tell()

    def _tell(self) -> None:
        log.info("%s runs without a CUDA graph: %s", self._function.__qualname__, self._why_eager)

    def _run_and_look_for_waits(self) -> None:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._function(*self._inputs)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in caught:
            if SYNC in str(warning.message):
                self._why_eager = f"it waits for the device in {warning.filename}, line {warning.lineno}"
            elif NOTICE not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        if self._generator is not None:
            graph.register_generator_state(self._generator)
        try:
            with capture(graph):
                self._function(*self._inputs)
        except RuntimeError as error:
            if "captur" not in f"{error} {error.__context__}":
                raise
            self._why_eager = f"{error.__context__ or error}".strip().splitlines()[0]
            self._tell()
            return None
        return graph
