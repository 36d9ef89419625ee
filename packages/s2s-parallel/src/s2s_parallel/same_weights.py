"""All processes have to begin with the same weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLED = 64  # elements of each parameter, spread over it: random weights differ in any of them


def check_same_weights(model: nn.Module) -> None:
    """Compare a sample of each parameter between all processes, each of which has to call this.

    Raises:
        ValueError: they differ; the message names the processes.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    digests: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(digests, _digest(model))
    different = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if different:
        raise ValueError(
            f"processes {', '.join(map(str, different))} were built with other weights than process 0: build the model"
            " after the same seed on all of them (lightning.seed_everything), from the same files"
        )


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(len(flat) // _SAMPLED, 1)].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + sample.numpy().tobytes())
    return digest.hexdigest()
