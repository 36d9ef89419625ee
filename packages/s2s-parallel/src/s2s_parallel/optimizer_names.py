"""An optimizer's state by parameter names, which a checkpoint in parts is kept by, or numbers, as torch has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

# What checkpointing of activations and torch.compile put into the names of what they wrap.
_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")


def unwrapped(name: str) -> str:
    """The name that a parameter has without the wrappers of activation checkpointing and torch.compile."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def names_by_group(optimizer: Optimizer, module: nn.Module) -> list[list[str]]:
    """The names of an optimizer's parameters, a list a group; of a tied one the first that `module` has."""
    names = {parameter: unwrapped(name) for name, parameter in module.named_parameters()}
    return [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]


def name_state(state: dict[str, Any], names: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Turn the numbers of `optimizer.state_dict()` into names, by their place in the parameter groups.

    Raises:
        ValueError: the groups differ in number or size from those of `names`.
    """
    check_groups(state["param_groups"], names)
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    return _rename(state, dict(zip(numbers, (name for group in names for name in group), strict=True)))


def number_state(state: dict[str, Any]) -> dict[str, Any]:
    """Turn names into the numbers that `optimizer.load_state_dict` takes: places in the parameter groups."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    return _rename(state, {name: number for number, name in enumerate(names)})


def check_groups(saved: Sequence[dict[str, Any]], names: Sequence[Sequence[str]]) -> None:
    """Refuse a checkpoint whose parameter groups aren't those of the optimizer.

    Raises:
        ValueError: with both numbers.
    """
    if len(saved) != len(names):
        raise ValueError(
            f"the checkpoint's optimizer has {len(saved)} parameter groups, this one {len(names)}: make the groups as"
            " in the run that saved it"
        )
    for index, (group, own) in enumerate(zip(saved, names, strict=True)):
        if len(group["params"]) != len(own):
            raise ValueError(
                f"parameter group {index} has {len(group['params'])} parameters in the checkpoint, {len(own)} in this"
                " optimizer: make the groups, and freeze parameters, as in the run that saved it"
            )


def _rename(state: dict[str, Any], to: dict[Any, Any]) -> dict[str, Any]:
    groups = [{**group, "params": [to[key] for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {to[key]: value for key, value in state["state"].items()}, "param_groups": groups}
