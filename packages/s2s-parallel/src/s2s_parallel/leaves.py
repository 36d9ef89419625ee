"""The parameters of a linear layer, alone or with LoRA's adapters, by the style of the layer."""

from __future__ import annotations

from torch import nn

from s2s_parallel.local_parameters import LocalParameter, Use, direct_parameters
from s2s_parallel.registry import Style

# Of a matrix [out, in] and its bias [out]. LoRA adds B (A x): A reads what the matrix reads, B gives what it gives.
_ROWS = {"weight": Use.ROWS, "bias": Use.ROWS, "lora_A": Use.SUMMAND, "lora_B": Use.ROWS}
_COLUMNS = {"weight": Use.COLUMNS, "bias": Use.FIRST, "lora_A": Use.COLUMNS, "lora_B": Use.SUMMAND}
_USES = {
    Style.COLWISE: _ROWS,
    Style.COLWISE_GATHER: _ROWS,
    Style.ROWWISE: _COLUMNS,
    Style.ROWWISE_SPLIT: _COLUMNS,
}


def leaf_parameters(leaf: nn.Module, name: str, style: Style) -> list[LocalParameter]:
    """How each parameter inside `leaf` is shared.

    Raises:
        ValueError: a matrix isn't that of a linear layer, or an adapter isn't plain LoRA.
    """
    if style in (Style.LOCAL_USE, Style.EXPERTS, Style.LOCAL_SHARE, Style.REPLICATE):
        use = {Style.LOCAL_USE: Use.SUMMAND, Style.REPLICATE: Use.WHOLE}.get(style, Use.ROWS)
        return [LocalParameter(m, p, use) for m in leaf.modules() for p in direct_parameters(m)]
    entries = []
    for path, module in leaf.named_modules():
        for parameter in direct_parameters(module):
            entries.append(LocalParameter(module, parameter, _use(path, parameter, name, style)))
    if not any(isinstance(module, nn.Linear) for module in leaf.modules()):
        raise ValueError(
            f"the tensor parallel plan shares {name} as {style.value}, but it is a {type(leaf).__name__} and no"
            " nn.Linear: register a plan that fits, s2s_parallel.registry.register_family"
        )
    return entries


def _use(path: str, parameter: str, name: str, style: Style) -> Use:
    uses = _USES[style]
    if path in ("", "base_layer") and parameter in uses:
        return uses[parameter]
    adapter, _, _ = path.partition(".")
    if adapter in uses and parameter == "weight":
        return uses[adapter]
    raise ValueError(
        f"{name}.{path}.{parameter} can't be shared between tensor parallel peers: of adapters only plain LoRA can"
        " (no DoRA, no bias of its own); use tensor_parallel_size=1"
    )
