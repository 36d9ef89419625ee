"""Which parameters are trained, and how."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from s2s_model.targets import instantiate


def freeze(module: nn.Module, freeze_params: Iterable[str], prevent: Iterable[str], other_names: Iterable[str]) -> None:
    """Freeze the parameters that match a regex of `freeze_params` and none of `prevent`.

    `other_names` are names that a regex may match though they aren't parameters of `module` (the codec's, which
    is frozen anyhow).

    Raises:
        ValueError: a regex matches nothing.
    """
    names = [name for name, _ in module.named_parameters()]
    freeze_patterns = _compile(freeze_params, "model.freeze_params", [*names, *other_names])
    prevent_patterns = _compile(prevent, "model.prevent_freeze_params", [*names, *other_names])
    for name, parameter in module.named_parameters():
        if any(p.match(name) for p in freeze_patterns) and not any(p.match(name) for p in prevent_patterns):
            parameter.requires_grad_(False)


def _compile(patterns: Iterable[str], where: str, names: list[str]) -> list[re.Pattern[str]]:
    compiled = []
    for i, pattern in enumerate(patterns):
        regex = re.compile(pattern)
        if not any(regex.match(name) for name in names):
            some = ", ".join(names[:3])
            raise ValueError(f"{where}[{i}]: {pattern!r} matches no parameter; the names look like {some}")
        compiled.append(regex)
    return compiled


def build_optimizers(
    module: nn.Module, optimizer: Mapping[str, Any], lr_scheduler: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What Lightning's `configure_optimizers` returns; the scheduler steps with the optimizer."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    built = instantiate(optimizer, "model.optimizer", params=parameters)
    answer: dict[str, Any] = {"optimizer": built}
    if lr_scheduler is not None:
        scheduler = instantiate(lr_scheduler, "model.lr_scheduler", optimizer=built)
        answer["lr_scheduler"] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    return answer
