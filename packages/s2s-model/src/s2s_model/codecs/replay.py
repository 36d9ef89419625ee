"""Calling a function of many small kernels as one CUDA graph.

A live session decodes a few frames at a time: 200 kernels of a few microseconds each, whose launches take ten times as
long as they do.
"""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

CALLS_BEFORE = 2  # calls of one shape in a row before it is recorded: libraries and caches settle in these
MOST_KEPT = 2  # graphs; each holds its buffers


class _Recording(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class Replays:
    """Records `function` once it is called with the same shapes again and again, and replays it from then on.

    `function` takes tensors on a GPU and returns one, waits for nothing, and changes nothing.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._recordings: OrderedDict[tuple[object, ...], _Recording] = OrderedDict()
        self._last: tuple[object, ...] = ()
        self._calls = 0
        self._lock = Lock()  # two sessions of one process share the buffers

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What `function` returns."""
        if torch.cuda.is_current_stream_capturing():  # then it becomes part of the caller's graph
            return self._function(*inputs)
        stream = torch.cuda.current_stream(inputs[0].device).cuda_stream
        key = (stream, *((tensor.shape, tensor.dtype) for tensor in inputs))
        with self._lock, torch.cuda.device_of(inputs[0]):
            if key not in self._recordings and self._is_settled(key):
                self._record(key, inputs)
            if key in self._recordings:
                return self._replay(key, inputs)
        return self._function(*inputs)

    def _is_settled(self, key: tuple[object, ...]) -> bool:
        self._calls = self._calls + 1 if key == self._last else 1
        self._last = key
        return self._calls > CALLS_BEFORE

    def _record(self, key: tuple[object, ...], inputs: tuple[Tensor, ...]) -> None:
        # Made outside of inference mode, so that they can be written to in and out of it.
        with torch.inference_mode(False), torch.no_grad():
            kept = tuple(tensor.detach().clone() for tensor in inputs)
            graph = torch.cuda.CUDAGraph()
            # Other threads, such as one that loads data, may call CUDA meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self._function(*kept)
        self._recordings[key] = _Recording(graph, kept, output)
        if len(self._recordings) > MOST_KEPT:
            self._recordings.popitem(last=False)

    def _replay(self, key: tuple[object, ...], inputs: tuple[Tensor, ...]) -> Tensor:
        recording = self._recordings[key]
        self._recordings.move_to_end(key)
        for kept, tensor in zip(recording.inputs, inputs, strict=True):
            kept.copy_(tensor)
        recording.graph.replay()
        return recording.output.clone()
