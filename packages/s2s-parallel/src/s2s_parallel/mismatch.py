"""Why a checkpoint doesn't fit a model, in words: the names that differ and both shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

_MAX_NAMES_QUOTED = 4


def explain_mismatch(
    checkpoint_state: Mapping[str, torch.Tensor], module_state: Mapping[str, torch.Tensor]
) -> str | None:
    """Say in one line how two state dicts differ in names and shapes; None if they fit.

    At most four names of each kind are quoted, with the count of the others.
    """
    different = {
        name: f"{name} is {_shape(checkpoint_state[name])} in the checkpoint, {_shape(tensor)} in the model"
        for name, tensor in module_state.items()
        if name in checkpoint_state and _shape(checkpoint_state[name]) != _shape(tensor)
    }
    missing = [name for name in module_state if name not in checkpoint_state]
    unexpected = [name for name in checkpoint_state if name not in module_state]
    parts = [
        _quote("other shapes", different, different.__getitem__),
        _quote("missing in the checkpoint", missing),
        _quote("unknown to the model", unexpected),
    ]
    return "; ".join(part for part in parts if part) or None


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape) if hasattr(tensor, "shape") else []


def _quote(title: str, names: Iterable[str], describe: Callable[[str], str] = str) -> str:
    names = list(names)
    if not names:
        return ""
    rest = len(names) - _MAX_NAMES_QUOTED
    quoted = ", ".join(describe(name) for name in names[:_MAX_NAMES_QUOTED])
    return f"{title} ({len(names)}): {quoted}" + (f" and {rest} more" if rest > 0 else "")
