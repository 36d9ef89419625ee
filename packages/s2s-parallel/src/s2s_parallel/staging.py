"""Copies of a checkpoint's tensors on the CPU, from which it is written while training goes on."""

from __future__ import annotations

from typing import Any

from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint.staging import BlockingAsyncStager


class ReusedStager(BlockingAsyncStager):
    """Copies into the same memory at each save: page-locked for a GPU's tensors, which makes the copy fast.

    To get such memory takes seconds a GiB, once. Torch's own stager asks for it on machines without a GPU too, and
    fails where the tensors are others than at the save before.
    """

    def __init__(self) -> None:
        super().__init__(cache_staged_state_dict=True)
        self._layout: dict[str, Any] = {}

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state_dict` (tensors by name), good until the next call."""
        layout = {name: (tensor.shape, tensor.dtype, tensor.device) for name, tensor in state_dict.items()}
        if self.state_dict_cache is None or layout != self._layout:
            on_gpu = any(tensor.is_cuda for tensor in state_dict.values())
            self.state_dict_cache, self._layout = _create_cpu_state_dict(state_dict, pin_memory=on_gpu), layout
        return _copy_state_dict(state_dict, self.state_dict_cache)
