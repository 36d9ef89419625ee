"""Which parameters are trained."""

import re
from collections.abc import Iterable

from torch import nn


def freeze(
    module: nn.Module,
    freeze_params: Iterable[str],
    prevent: Iterable[str],
    other_names: Iterable[str],
    reopen: str | None = None,
) -> None:
    """Freeze the parameters that match a regex of `freeze_params` and none of `prevent`.

    Below `reopen` (the LLM, all of which `inject_lora` froze) those that match `prevent` are trained again; what a
    family keeps fixed elsewhere, such as Whisper's positions, stays so. `other_names` are names that a regex may match
    though they aren't parameters of `module` (the codec's, which is frozen anyhow).

    Raises:
        ValueError: a regex matches nothing.
    """
    names = [name for name, _ in module.named_parameters()]
    freeze_patterns = _compile(freeze_params, "model.freeze_params", [*names, *other_names])
    prevent_patterns = _compile(prevent, "model.prevent_freeze_params", [*names, *other_names])
    for name, parameter in module.named_parameters():
        if any(p.match(name) for p in prevent_patterns):
            if reopen is not None and name.startswith(reopen):
                parameter.requires_grad_(True)
        elif any(p.match(name) for p in freeze_patterns):
            parameter.requires_grad_(False)


def _compile(patterns: Iterable[str], where: str, names: list[str]) -> list[re.Pattern[str]]:
    return [compile_pattern(pattern, f"{where}[{i}]", names) for i, pattern in enumerate(patterns)]


def compile_pattern(pattern: str, where: str, names: list[str]) -> re.Pattern[str]:
    """Compile a regex that has to match one of `names`; `where` is the config key quoted.

    Raises:
        ValueError: it is no regex, or matches nothing.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression: {error}") from error
    if not any(regex.match(name) for name in names):
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in names))
        raise ValueError(
            f"{where}: {pattern!r} matches no parameter; they look like {names[0]}, and begin with one of {parts}"
        )
    return regex
