"""Something around a module's forward, the module itself staying what it is.

A wrapping module would put its own name into those of the parameters, which regexes, plans and checkpoints go by. A
function in place of `module.forward` would be another one in each layer, so that torch.compile would compile each layer
for itself, and a deep copy of the module would go on computing with the original. So the class is changed, as FSDP does
it: all layers of a class, wrapped alike, are of one class again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import nn

_WRAPPER = "_wrapper_of_forward"


def wrap_forward(module: nn.Module, wrapper: Callable[..., Any], *data: Any) -> None:
    """Let `wrapper(*data, forward, *args, **kwargs)` run in place of `module.forward(*args, **kwargs)`.

    Args:
        module: changed in place; what was wrapped before is inside.
        wrapper: a function of a module's top level.
        data: what it needs to know of this module.
    """
    assert "forward" not in module.__dict__, f"{type(module).__name__} has a forward of its own"
    base: Any = type(module)
    module.__class__ = _wrapped(base, wrapper)
    module.__dict__[_name_of_data(type(module))] = data


def unwrap_forward(module: nn.Module, wrapper: Callable[..., Any]) -> None:
    """Undo `wrap_forward(module, wrapper)`, if that was the last."""
    if type(module).__dict__.get(_WRAPPER) is wrapper:
        del module.__dict__[_name_of_data(type(module))]
        module.__class__ = type(module).__bases__[0]


def is_wrapped(module: nn.Module, wrapper: Callable[..., Any]) -> bool:
    """Whether `wrap_forward(module, wrapper)` was called, whatever was wrapped around it since."""
    return any(base.__dict__.get(_WRAPPER) is wrapper for base in type(module).__mro__)


@cache
def _wrapped(base: Any, wrapper: Callable[..., Any]) -> Any:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return wrapper(*getattr(self, name), partial(base.forward, self), *args, **kwargs)

    traits = {"forward": forward, "__module__": base.__module__, "__qualname__": base.__qualname__, _WRAPPER: wrapper}
    made = type(base.__name__, (base,), traits)
    name = _name_of_data(made)
    return made


def _name_of_data(wrapped: type) -> str:
    """An attribute for each wrapper around a module, the innermost first."""
    return f"_data_of_wrapper_{sum(_WRAPPER in base.__dict__ for base in wrapped.__mro__)}"
