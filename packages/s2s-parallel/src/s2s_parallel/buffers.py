"""Running statistics of batch norms on several processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def tracking_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch norms inside `module` that keep running statistics."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def keep_statistics_alike(model: nn.Module) -> None:
    """Before each training step give all processes the first one's running statistics, as DDP does.

    FSDP leaves them alone; each process would validate with those of its own data.
    """
    norms = tracking_norms(model)
    if norms:
        model.register_forward_pre_hook(lambda module, _: _broadcast(norms) if module.training else None)


def _broadcast(norms: list[_BatchNorm]) -> None:
    buffers: list[Any] = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    for dtype in dict.fromkeys(buffer.dtype for buffer in buffers):
        alike = [buffer for buffer in buffers if buffer.dtype == dtype]
        flat = torch.cat([buffer.flatten() for buffer in alike])
        torch.distributed.broadcast(flat, 0)
        for buffer, part in zip(alike, flat.split([buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(part.view_as(buffer))
