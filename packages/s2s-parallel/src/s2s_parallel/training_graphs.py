"""A part of a training step as two CUDA graphs, forward and backward, replayed instead of launched kernel by kernel.

An encoder of many small layers takes the host longer to launch than the GPU to compute. A graph is one launch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

ERRORS = "thread_local"  # meanwhile other threads, such as those that pin batches, may allocate
Function = Callable[..., tuple[Tensor, Tensor]]


class TrainingGraphs:
    """Calls `function(*tensors)`, which gives two tensors: one that depends on the weights, one that doesn't.

    A batch of a new size runs as it is, which lets what is compiled compile; from its second time on it is replayed.
    All graphs share one piece of memory, that of the largest, since only one is between its forward and its backward.

    Args:
        function: of tensors on a GPU. What it does mustn't depend on anything but them, the weights and torch's random
            numbers: a graph repeats what the host decided when it was captured.
        module: whose weights it reads.
        recompute: compute forward again in backward, instead of keeping what it needs until then.
        max_sizes: how many are kept; the one unused for longest goes.
    """

    def __init__(self, function: Function, module: nn.Module, *, recompute: bool = False, max_sizes: int = 16) -> None:
        self._function = function
        self._module = module
        self._recompute = recompute
        self._max_sizes = max_sizes
        self._forget()

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copied module isn't graphed."""

    def _forget(self) -> None:
        self._captured: OrderedDict[Any, _Captured] = OrderedDict()
        self._seen: set[Any] = set()
        self._addresses: list[int] = []
        self._parameters: list[nn.Parameter] = []
        self._gradients: list[Tensor] = []
        self._pool: Any = None

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The function's results, by replay where that is possible: in training, on a GPU, in sizes seen before."""
        if not torch.is_grad_enabled() or not tensors[0].is_cuda or torch.cuda.is_current_stream_capturing():
            return self._function(*tensors)
        self._check_weights()
        autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        size = (*((tensor.shape, tensor.dtype) for tensor in tensors), autocast, torch.get_default_dtype())
        if size not in self._seen or not self._parameters:
            self._seen.add(size)
            return self._function(*tensors)
        if size not in self._captured:
            self._captured[size] = self._capture(tensors)
        self._captured.move_to_end(size)
        if len(self._captured) > self._max_sizes:
            self._captured.popitem(last=False)
        first, second = _Replay.apply(self._captured[size], len(tensors), *tensors, *self._parameters)  # type: ignore[no-untyped-call]
        return first, second

    def _check_weights(self) -> None:
        """Forget what was captured with other weights, or with these elsewhere."""
        parameters = [p for p in self._module.parameters() if p.requires_grad]
        addresses = [p.data_ptr() for p in self._module.parameters()] + [len(parameters)]
        if addresses != self._addresses:
            self._forget()
            self._addresses, self._parameters = addresses, parameters
            self._gradients = [torch.zeros_like(p) for p in parameters]

    def _capture(self, tensors: tuple[Tensor, ...]) -> _Captured:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        try:
            captured = _Captured(
                self._function, tensors, self._parameters, self._gradients, self._pool, recompute=self._recompute
            )
        except RuntimeError as error:
            raise ValueError(
                f"parallel.cuda_graphs: {type(self._module).__name__} can't be captured for a batch of shape"
                f" {list(tensors[0].shape)}: {str(error).splitlines()[0]}. Set parallel.cuda_graphs=false"
            ) from error
        for buffer, kept in buffers:  # running statistics: the warm-up counts for nothing
            buffer.copy_(kept)
        return captured


class _Captured:
    """The graphs of one size."""

    def __init__(
        self,
        function: Function,
        tensors: tuple[Tensor, ...],
        parameters: list[nn.Parameter],
        gradients: list[Tensor],
        pool: Any,
        *,
        recompute: bool,
    ) -> None:
        self._function = function
        self._recompute = recompute
        self._inputs = [tensor.detach().clone() for tensor in tensors]
        self.parameters, self.gradients = parameters, gradients
        self._random: Tensor | None = None
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), _autocast():
            out, _ = self._run()
            self._of_output = torch.zeros_like(out)
            torch.autograd.grad(out, parameters, self._of_output, allow_unused=True)
            del out
        torch.cuda.current_stream().wait_stream(stream)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode=ERRORS), _autocast():
            out, self._second = self._run()
            self._first = out.detach()
            if recompute:
                del out
        with torch.cuda.graph(self._backward, pool=pool, capture_error_mode=ERRORS), _autocast():
            if recompute:
                out, _ = self._run()
            computed = torch.autograd.grad(out, parameters, self._of_output, allow_unused=True)
            pairs = [(mine, new) for mine, new in zip(gradients, computed, strict=True) if new is not None]
            torch._foreach_copy_([mine for mine, _ in pairs], [new for _, new in pairs])
        self.used = [new is not None for new in computed]

    def _run(self) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            return self._function(*self._inputs)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        for mine, new in zip(self._inputs, tensors, strict=True):
            mine.copy_(new)
        if self._recompute:
            self._random = torch.cuda.get_rng_state()
        self._forward.replay()
        return self._first.clone(), self._second.clone()

    def backward(self, of_output: Tensor) -> list[Tensor | None]:
        self._of_output.copy_(of_output)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is not None and parameter.grad.data_ptr() == gradient.data_ptr():
                parameter.grad = parameter.grad.clone()  # gradients add up over batches: this one is written anew
        if self._random is None:
            self._backward.replay()
        else:  # the same dropout as in forward
            now = torch.cuda.get_rng_state()
            torch.cuda.set_rng_state(self._random)
            self._backward.replay()
            torch.cuda.set_rng_state(now)
        return [gradient.detach() if used else None for gradient, used in zip(self.gradients, self.used, strict=True)]


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, captured: _Captured, num_tensors: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.captured, ctx.num_tensors = captured, num_tensors
        first, second = captured.forward(tensors[:num_tensors])
        ctx.mark_non_differentiable(second)
        return first, second

    @staticmethod
    def backward(ctx: Any, of_first: Tensor, _: Tensor) -> tuple[Any, ...]:
        return (None, None, *[None] * ctx.num_tensors, *ctx.captured.backward(of_first))


def _autocast() -> AbstractContextManager[Any]:
    """As it is now, but without its cache of cast weights, which would be another graph's."""
    return torch.autocast(
        "cuda",
        dtype=torch.get_autocast_dtype("cuda"),
        enabled=torch.is_autocast_enabled("cuda"),
        cache_enabled=False,
    )
