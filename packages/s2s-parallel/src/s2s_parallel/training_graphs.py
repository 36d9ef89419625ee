"""A training step's forward and backward as two CUDA graphs, replayed instead of launched kernel by kernel.

Many small layers take the host longer to launch than the GPU to compute. A graph is one launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from s2s_parallel.graph_capture import autocast_dtype, capture, uncached_autocast


class Results(NamedTuple):
    """What a graphed function gives."""

    differentiable: tuple[Tensor, ...]
    others: tuple[Tensor, ...]


class TrainingGraphs:
    """Calls `function(*tensors)`, or replays what it did for tensors of these sizes.

    A batch of a new size runs as it is, which lets what is compiled compile; from its second time on it is replayed.
    All graphs share one piece of memory, as large as the largest needs: one step's activations and gradients. Gradients
    lie there until the next forward.

    Args:
        function: what it does mustn't depend on anything but its tensors, the weights and torch's random numbers: a
            graph repeats what the host decided when it was captured.
        module: whose weights it reads.
        max_sizes: how many are kept; the one unused for longest goes.
    """

    def __init__(self, function: Callable[..., Results], module: nn.Module, *, max_sizes: int = 32) -> None:
        self._function = function
        self._module = module
        self._max_sizes = max_sizes
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied module isn't graphed."""

    def _forget(self) -> None:
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._seen: set[Any] = set()
        self._addresses: list[Any] = []
        self._parameters: list[nn.Parameter] = []
        self._pool: Any = None

    @property
    def num_captured(self) -> int:
        """Sizes that are replayed."""
        return len(self._captured)

    def __call__(self, *tensors: Tensor) -> Results:
        """The function's results, by replay where that is possible: in training, on a GPU, in sizes seen before."""
        if not torch.is_grad_enabled() or not tensors[0].is_cuda:
            return self._function(*tensors)
        self._check_weights()
        dtypes = autocast_dtype("cuda"), torch.get_default_dtype()
        size = (*((tensor.shape, tensor.dtype) for tensor in tensors), *dtypes)
        if size not in self._seen or not self._parameters:
            self._seen.add(size)
            with uncached_autocast("cuda"):  # as in the capture, where nothing can be compiled anew
                return self._function(*tensors)
        self._keep_gradients()
        if size not in self._captured:
            self._captured[size] = self._capture(tensors)
        self._captured.move_to_end(size)
        if len(self._captured) > self._max_sizes:
            self._captured.popitem(last=False)
        captured = self._captured[size]
        results: tuple[Tensor, ...] = _Replay.apply(captured, *tensors, *self._parameters[:1])  # type: ignore[no-untyped-call]
        count = captured.num_differentiable
        return Results(results[:count], results[count:])

    def _check_weights(self) -> None:
        """Forget what was captured with other weights, or with these elsewhere."""
        addresses = [(p.data_ptr(), p.requires_grad) for p in self._module.parameters()]
        if addresses != self._addresses:
            self._forget()
            self._addresses = addresses
            self._parameters = [p for p in self._module.parameters() if p.requires_grad]

    def _keep_gradients(self) -> None:
        """Move gradients of batches before, which add up with this one's, out of the memory that it will need."""
        if all(p.grad is None for p in self._parameters[:1]):
            return
        addresses = {gradient.data_ptr() for captured in self._captured.values() for gradient in captured.known}
        for parameter in self._parameters:
            if parameter.grad is not None and parameter.grad.data_ptr() in addresses:
                parameter.grad = parameter.grad.clone()

    def _capture(self, tensors: tuple[Tensor, ...]) -> _Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            return _Captured(self._function, tensors, self._parameters, self._pool)
        except RuntimeError as error:
            cause = " ".join(f"{error.__context__ or error}".split())[:300]
            raise ValueError(
                f"parallel.cuda_graphs: a step of {type(self._module).__name__} can't be captured for a batch of shape"
                f" {list(tensors[0].shape)}: {cause}. Set parallel.cuda_graphs=false"
            ) from error


class _Captured:
    """The graphs of one size."""

    def __init__(
        self, function: Callable[..., Results], tensors: Sequence[Tensor], parameters: list[nn.Parameter], pool: Any
    ) -> None:
        self._parameters = parameters
        self._inputs = [tensor.detach().clone() for tensor in tensors]
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with capture(self._forward, pool), uncached_autocast("cuda"):
            outputs, others = function(*self._inputs)
            self._results = [result.detach() for result in (*outputs, *others)]
        self.num_differentiable = len(outputs)
        self._of_outputs = [torch.zeros_like(output) for output in outputs]
        with capture(self._backward, pool):
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
        ctx.captured, ctx.num_tensors = captured, len(tensors)
        results = captured.forward(tensors[:-1])
        ctx.mark_non_differentiable(*results[captured.num_differentiable :])
        return results

    @staticmethod
    def backward(ctx: Any, *of_results: Tensor) -> tuple[None, ...]:
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
