"""The optimizer with its parameter groups: a module's own learning rate, no weight decay on norms and biases."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from s2s_model.freezing import compile_pattern
from s2s_model.targets import instantiate


def build_optimizers(
    module: nn.Module,
    optimizer: Mapping[str, Any],
    lr_scheduler: Mapping[str, Any] | None,
    groups: Sequence[Mapping[str, Any]] = (),
    decay_norms_and_biases: bool = False,
) -> dict[str, Any]:
    """What Lightning's `configure_optimizers` returns; the scheduler steps with the optimizer.

    Args:
        module: its parameters that require a gradient are trained.
        optimizer: a `_target_` with its arguments.
        lr_scheduler: the same, or None.
        groups: arguments of the optimizer for the parameters that match a regex: `{match: "^perception", lr: 1e-4}`.
            A parameter follows the first that matches, the others follow `optimizer`.
        decay_norms_and_biases: False sets `weight_decay` of norms, biases and other vectors to 0.

    Raises:
        ValueError: nothing is trained, a group matches nothing that is, or an argument is refused.
    """
    built = instantiate(
        optimizer, "model.optimizer", base=Optimizer, params=parameter_groups(module, groups, decay_norms_and_biases)
    )
    _check_arguments(groups, optimizer["_target_"], built.defaults)
    answer: dict[str, Any] = {"optimizer": built}
    if lr_scheduler is not None:
        scheduler = instantiate(lr_scheduler, "model.lr_scheduler", base=LRScheduler, optimizer=built)
        answer["lr_scheduler"] = {"scheduler": scheduler, "interval": "step", "frequency": 1}
    return answer


def parameter_groups(
    module: nn.Module, groups: Sequence[Mapping[str, Any]], decay_norms_and_biases: bool
) -> list[dict[str, Any]]:
    """Sort the trained parameters of `module` into groups as torch's optimizers take them."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("model.freeze_params freezes every parameter: nothing is left to train")
    patterns = [_compile(group, i, trained) for i, group in enumerate(groups)]
    sorted_groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in trained.items():
        index = next((i for i, pattern in enumerate(patterns) if pattern.match(name)), len(groups))
        decays = decay_norms_and_biases or not _is_norm_or_bias(name, parameter)
        if (index, decays) not in sorted_groups:
            arguments = dict(groups[index]) if index < len(groups) else {}
            arguments.pop("match", None)
            sorted_groups[index, decays] = {"params": [], **arguments, **({} if decays else {"weight_decay": 0.0})}
        sorted_groups[index, decays]["params"].append(parameter)
    return [sorted_groups[key] for key in sorted(sorted_groups, key=lambda key: (key[0], not key[1]))]


def trained_weights(optimizer: Optimizer) -> list[nn.Parameter]:
    """The weights it changes: a walk through thousands of modules takes longer than a small model's step on a GPU."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def follow_config(
    saved: Sequence[dict[str, Any]], own: Sequence[Mapping[str, Any]], optimizer: Mapping[str, Any]
) -> list[str]:
    """Put the config's arguments into the groups of a checkpoint's optimizer, whose own would go on otherwise.

    A learning rate that the schedule has moved is scaled as its start is.

    Args:
        saved: the checkpoint's groups, which are changed.
        own: the config's, as `parameter_groups` gives them; as many.
        optimizer: `model.optimizer`.

    Returns:
        What has changed, a sentence each.
    """
    changes = []
    for index, (old, new) in enumerate(zip(saved, own, strict=True)):
        wanted = {key: value for key, value in {**optimizer, **new}.items() if key in old and key != "params"}
        for key, value in wanted.items():
            at_start = "initial_lr" if key == "lr" and "initial_lr" in old else key
            was = old[at_start]
            now = type(was)(value) if isinstance(was, tuple) else value
            if was == now:
                continue
            changes.append(f"the optimizer's {key} of parameter group {index} goes from {was} to {now}")
            if at_start != key:
                old[key] = old[key] * (now / was) if was else now
            old[at_start] = now
    return changes


def _check_arguments(groups: Sequence[Mapping[str, Any]], target: str, known: Mapping[str, Any]) -> None:
    """Refuse what the optimizer doesn't know: torch keeps such keys and ignores them."""
    for index, group in enumerate(groups):
        for key in group:
            if key not in ("match", *known):
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
                raise ValueError(f"model.param_groups[{index}].{key} is no argument of {target}: {hint}")


def _is_norm_or_bias(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim < 2 or "bias" in name.rpartition(".")[2]  # a Conformer's pos_bias_u is [heads, size]


def _compile(group: Mapping[str, Any], index: int, trained: Mapping[str, nn.Parameter]) -> re.Pattern[str]:
    where = f"model.param_groups[{index}]"
    if not isinstance(group.get("match"), str):
        raise ValueError(f'{where}.match is missing: give a regex over parameter names, such as "^perception\\\\."')
    if not set(group) - {"match"}:
        raise ValueError(f"{where} sets nothing: give an argument of the optimizer beside match, such as lr")
    return compile_pattern(group["match"], f"{where}.match", list(trained))
