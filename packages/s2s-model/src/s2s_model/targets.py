"""`_target_` in a config names a class; only classes of known packages are instantiated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

ALLOWED_PREFIXES = (
    "torch.",
    "lightning.",
    "nemo.collections.",
    "nemo.core.",
    "s2s_",
    "transformers.",
    "peft.",
)


def check_targets(config: object, where: str) -> None:
    """Check every `_target_` and `target` below `config` by name.

    Raises:
        ValueError: a target lies outside the allowed packages; `where` is the config key quoted.
    """
    for key, target in _targets(config, where):
        _check_name(key, target)


def _targets(config: object, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key in ("_target_", "target") and isinstance(value, str):
                yield f"{where}.{key}", value
            yield from _targets(value, f"{where}.{key}")
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for i, value in enumerate(config):
            yield from _targets(value, f"{where}[{i}]")


def _check_name(key: str, target: str) -> None:
    if not target.startswith(ALLOWED_PREFIXES):
        raise ValueError(
            f"{key}: {target!r} isn't in a package that a config may instantiate from: "
            f"{', '.join(p + '*' for p in ALLOWED_PREFIXES)}"
        )


def _check_class(key: str, target: str, base: type) -> None:
    """Refuse what isn't a class of its package, such as torch.os.system."""
    from hydra.utils import get_object

    try:
        found = get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{key}: there is no {target!r} ({error})") from error
    if not isinstance(found, type):
        raise ValueError(f"{key}: {target!r} isn't a class")
    _check_name(key, f"{found.__module__}.{found.__qualname__}")
    if not issubclass(found, base):  # torch has classes that start processes
        raise ValueError(f"{key}: {target!r} is no {base.__module__}.{base.__qualname__}")


def instantiate(config: Mapping[str, Any], where: str, *, base: type = nn.Module, **arguments: Any) -> Any:
    """Build what `config` describes, `arguments` added to it; each class in it has to be a `base`.

    Raises:
        ValueError: `_target_` is missing, not allowed, unknown, no `base`, or refuses its arguments.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    if "_target_" not in config:
        raise ValueError(f"{where}: needs a _target_, the class to build")
    check_targets(config, where)
    for key, target in _targets(config, where):
        _check_class(key, target, base)
    try:
        return hydra_instantiate(dict(config), _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ValueError(f"{where}: {config['_target_']} can't be built from {dict(config)}: {cause}") from error
