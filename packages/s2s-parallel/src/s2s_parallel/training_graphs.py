"""A training step's forward and backward as two CUDA graphs, replayed instead of launched kernel by kernel.

Many small layers take the host longer to launch than the GPU to compute. A graph is one launch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2s_parallel.graph_capture import autocast_dtype, capture, uncached_autocast

log = logging.getLogger(__name__)


class Results(NamedTuple):
    """What a graphed function gives."""

    differentiable: tuple[Tensor, ...]
    others: tuple[Tensor, ...]


class TrainingGraphs:
    """Calls `function(*tensors)`, or replays what it did for tensors of these sizes.

    A batch of a new size runs as it is, which lets what is compiled compile; from its second time on it is replayed.
    All graphs share one piece of memory, as large as the largest needs: one step's activations and gradients. Gradients
    lie there until the next forward. So each forward's backward has to come before the next forward, and once.

    Args:
        function: what it does mustn't depend on anything but its tensors, the module and torch's random numbers: a
            graph repeats what the host decided when it was captured. It is captured anew where weights or buffers have
            moved, or parts of the module were frozen or put into another mode.
        module: whose weights it reads.
        max_sizes: how many are captured; further sizes run as they are.
    """

    def __init__(self, function: Callable[..., Results], module: nn.Module, *, max_sizes: int = 32) -> None:
        self._function = function
        self._module = module
        self._max_sizes = max_sizes
        self._warned = False
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied module isn't graphed."""

    def _forget(self) -> None:
        self._captured: dict[Any, _Captured] = {}
        self._seen: set[Any] = set()
        self._state: list[int] = []
        self._parameters: list[nn.Parameter] = []
        self._memory = _Memory()

    @property
    def num_captured(self) -> int:
        """Sizes that are replayed."""
        return len(self._captured)

    def __call__(self, *tensors: Tensor) -> Results:
        """The function's results, by replay where that is possible: in training, on a GPU, in sizes seen before.

        Raises:
            ValueError: it can't be captured.
            torch.OutOfMemoryError: it doesn't fit.
        """
        if not torch.is_grad_enabled() or not tensors[0].is_cuda:
            return self._function(*tensors)
        self._check_module()
        dtypes = autocast_dtype("cuda"), torch.get_default_dtype()
        size = (*((tensor.shape, tensor.dtype) for tensor in tensors), *dtypes)
        if size not in self._captured and not self._may_capture(size):
            with uncached_autocast("cuda"):  # as in the capture, where nothing can be compiled anew
                return self._function(*tensors)
        self._keep_gradients()
        if size not in self._captured:
            self._captured[size] = self._capture(tensors)
        captured = self._captured[size]
        results: tuple[Tensor, ...] = _Replay.apply(captured, *tensors, self._parameters[0])  # type: ignore[no-untyped-call]
        count = captured.num_differentiable
        return Results(results[:count], results[count:])

    def _may_capture(self, size: Any) -> bool:
        if size not in self._seen or not self._parameters:
            self._seen.add(size)
            return False
        if len(self._captured) < self._max_sizes:
            return True
        if not self._warned:
            self._warned = True
            log.warning(
                "parallel.cuda_graphs: batches come in more than %d sizes; further ones run without graphs, slower: "
                "use fewer duration buckets",
                self._max_sizes,
            )
        return False

    def _check_module(self) -> None:
        """Forget what was captured with weights or buffers elsewhere, or of a module in another state."""
        state = state_of(self._module)
        if state != self._state:
            self._forget()
            self._state = state
            self._parameters = [p for p in self._module.parameters() if p.requires_grad]

    def _keep_gradients(self) -> None:
        """Move gradients of batches before, which add up with this one's, out of the memory that it will need."""
        kept = [parameter for parameter in self._parameters if parameter.grad is not None]
        if not kept:
            return
        addresses = {gradient.data_ptr() for captured in self._captured.values() for gradient in captured.known}
        for parameter in kept:
            if parameter.grad is not None and parameter.grad.data_ptr() in addresses:
                parameter.grad = parameter.grad.clone()

    def _capture(self, tensors: tuple[Tensor, ...]) -> _Captured:
        self._memory.use()
        try:
            return _Captured(self._function, tensors, self._parameters, self._memory)
        except RuntimeError as error:
            cause = error.__context__ or error  # the first: ending the capture fails too
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            raise ValueError(
                f"parallel.cuda_graphs: a step of {type(self._module).__name__} can't be captured for a batch of shape"
                f" {list(tensors[0].shape)}: {' '.join(str(cause).split())[:300]}. Set parallel.cuda_graphs=false"
            ) from error


def state_of(root: nn.Module) -> list[int]:
    """Where weights and buffers lie, which weights are trained, and each module's mode.

    As `modules()` and `parameters()` go, in a quarter of the time: this is done in each step, of thousands of modules.
    """
    state: list[int] = []
    modules, seen = [root], {id(root)}
    while modules:
        module = modules.pop()
        state.append(module.training)
        for parameter in module._parameters.values():
            if parameter is not None:
                state += (parameter.data_ptr(), parameter.requires_grad)
        for buffer in module._buffers.values():
            if buffer is not None:
                state.append(buffer.data_ptr())
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return state


class _Memory:
    """What all graphs of a module share; whose activations lie in it is told by a number."""

    def __init__(self) -> None:
        self.pool: Any = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._uses = 0

    def use(self) -> int:
        """Take it for another forward; returns its number."""
        self._uses += 1
        return self._uses

    def end(self, number: int) -> None:
        """Take it for the backward of that forward.

        Raises:
            RuntimeError: something else lies there.
        """
        if number != self._uses:
            raise RuntimeError(
                "parallel.cuda_graphs: backward of a batch whose activations are gone: all batches share one memory, "
                "so call backward once, before the next forward. Set parallel.cuda_graphs=false to do otherwise"
            )
        self._uses += 1


class _Captured:
    """The graphs of one size."""

    def __init__(
        self,
        function: Callable[..., Results],
        tensors: Sequence[Tensor],
        parameters: list[nn.Parameter],
        memory: _Memory,
    ) -> None:
        self._parameters = parameters
        self.memory = memory
        self._inputs = [tensor.detach().clone() for tensor in tensors]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capture(self._forward, memory.pool), uncached_autocast("cuda"):
            outputs, others = function(*self._inputs)
            self._results = [result.detach() for result in (*outputs, *others)]
        self.num_differentiable = len(outputs)
        self._of_outputs = [torch.zeros_like(output) for output in outputs]
        with capture(self._backward, memory.pool):
            found = torch.autograd.grad(outputs, parameters, self._of_outputs, allow_unused=True)
            gradients = _own_memory(found, parameters)
        del found, outputs, others
        self._gradients = [None if gradient is None else _unowned(gradient) for gradient in gradients]

    @property
    def known(self) -> list[Tensor]:
        """The gradients that there are."""
        return [gradient for gradient in self._gradients if gradient is not None]

    def forward(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        torch._foreach_copy_(self._inputs, list(tensors))
        self._forward.replay()
        return tuple(result.clone() for result in self._results)

    def backward(self, of_outputs: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self._of_outputs, list(of_outputs))
        self._backward.replay()
        sums, summands = [], []
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if gradient is not None and parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None and parameter.grad is not None:
                sums.append(parameter.grad)
                summands.append(gradient)
        if sums:
            torch._foreach_add_(sums, summands)


class _Replay(torch.autograd.Function):
    """Takes one parameter only so that its results need a gradient: the graph's own go straight to the parameters."""

    @staticmethod
    def forward(ctx: Any, captured: _Captured, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.captured, ctx.num_tensors, ctx.number = captured, len(tensors), captured.memory.use()
        results = captured.forward(tensors[:-1])
        ctx.mark_non_differentiable(*results[captured.num_differentiable :])
        return results

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor) -> tuple[None, ...]:
        ctx.captured.memory.end(ctx.number)
        ctx.captured.backward(of_results[: ctx.captured.num_differentiable])
        nothing: tuple[None, ...] = (None,) * (1 + ctx.num_tensors)
        return nothing


def _own_memory(found: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
    """Gradients laid out as their parameters are, none in the memory of another: they are changed in place."""
    seen: set[int] = set()
    own: list[Tensor | None] = []
    for gradient, parameter in zip(found, parameters, strict=True):
        if gradient is not None and (gradient.stride() != parameter.stride() or gradient.data_ptr() in seen):
            gradient = torch.empty_like(parameter).copy_(gradient)  # noqa: PLW2901
        if gradient is not None:
            seen.add(gradient.data_ptr())
        own.append(gradient)
    return own


def _unowned(tensor: Tensor) -> Tensor:
    """The same memory, which the allocator may give to the next graph of the pool: it isn't replayed meanwhile."""
    storage = torch._C._construct_storage_from_data_pointer(
        tensor.data_ptr(), tensor.device, tensor.numel() * tensor.element_size()
    )
    alias: Tensor = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(storage, 0, tensor.size(), tensor.stride())
