"""`_target_` in a config names a class; only classes of known packages are instantiated."""

import difflib
import inspect
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

# Of hydra, beside the class's own arguments.
_HYDRAS_KEYS = ("_target_", "_convert_", "_recursive_", "_partial_", "_args_")
# Classes that hand their keyword arguments on to another one.
_HANDS_ON = {
    "DDPStrategy": "torch.nn.parallel.DistributedDataParallel",
    "WandbLogger": "wandb.init",
    "TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter",
}


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


def check_arguments(config: object, where: str) -> None:
    """Check the keys beside every `_target_` below `config` against the arguments of its class; imports them.

    Raises:
        ValueError: a key is none of them: its dotted path, and the nearest. Of a class that takes any keyword, only
            keys that are close to one it names are refused.
    """
    if isinstance(config, Mapping):
        others = [str(key) for key in config if key not in ("target", *_HYDRAS_KEYS)]
        if near := difflib.get_close_matches("_target_", others, n=1, cutoff=0.8):
            raise ValueError(f"{where}.{near[0]}: did you mean {where}._target_?")
        if "_target_" in config:
            _check_keys_of_class(config, where)
        for key, value in config.items():
            check_arguments(value, f"{where}.{key}")
    elif isinstance(config, Sequence) and not isinstance(config, str):
        for i, value in enumerate(config):
            check_arguments(value, f"{where}[{i}]")


def check_names(names: Sequence[str], target: str, where: str) -> None:
    """Check that the class `target` takes arguments of these names.

    Raises:
        ValueError: as `check_arguments`.
    """
    from hydra.utils import get_object

    known, takes_any = _arguments(get_object(target))
    for name in names:
        if name in known or name in _HYDRAS_KEYS:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if takes_any else 0.6)
        if near or not takes_any:
            hint = f"did you mean {where}.{near[0]}?" if near else f"it takes {', '.join(sorted(known))}"
            raise ValueError(f"{where}.{name} is no argument of {target}: {hint}")


def _check_keys_of_class(config: Mapping[str, Any], where: str) -> None:
    _check_name(f"{where}._target_", str(config["_target_"]))
    _check_class(f"{where}._target_", str(config["_target_"]), object)
    check_names([str(key) for key in config], str(config["_target_"]), where)


def _arguments(found: Any) -> tuple[set[str], bool]:
    """The names of a class's arguments, those of its bases as far as they are handed on; whether any other will do."""
    from hydra.utils import get_object

    kinds = inspect.Parameter
    known: set[str] = set()
    classes = inspect.getmro(found) if inspect.isclass(found) else ()
    takes_any = False
    for init in [vars(each)["__init__"] for each in classes if "__init__" in vars(each)] or [found]:
        parameters = list(inspect.signature(init).parameters.values())
        known |= {p.name for p in parameters if p.kind in (kinds.KEYWORD_ONLY, kinds.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
            break
        takes_any = True
    for handed_on in (_HANDS_ON[each.__name__] for each in classes if each.__name__ in _HANDS_ON):
        more, takes_any = _arguments(get_object(handed_on))
        known |= more
    return known - {"self"}, takes_any


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
    check_arguments(config, where)
    try:
        return hydra_instantiate(dict(config), _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__ or error
        raise ValueError(f"{where}: {config['_target_']} can't be built from {dict(config)}: {cause}") from error
