"""Tensor and sequence parallelism of an LLM by its family's plan (Megatron-LM, Shoeybi et al., arXiv 1909.08053;
sequence parallelism: Korthikanti et al., arXiv 2205.05198).

Each peer computes its share of the attention heads and of the MLP's features. Between these blocks all peers compute
the same; with sequence parallelism each has its share of the frames there instead.

Terms: a *layer* is a decoder layer, a *block* one of its children with shared matrices (attention, MLP), a *leaf* a
module that holds them. Shapes: `B` batch, `T` frames, `H` hidden.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from s2s_parallel import collectives as peers
from s2s_parallel.collectives import FRAMES, frames_are_shared
from s2s_parallel.compiled import compile_in_training
from s2s_parallel.config import ParallelConfig
from s2s_parallel.experts import share_experts
from s2s_parallel.forwards import wrap_forward
from s2s_parallel.leaves import leaf_parameters
from s2s_parallel.local_parameters import (
    Distributor,
    LocalParameter,
    Use,
    compute_locally,
    direct_parameters,
)
from s2s_parallel.mesh import divisors, join_sizes
from s2s_parallel.parts import ModelParts
from s2s_parallel.registry import Plan, Style, plan_for
from s2s_parallel.vocabulary import copy_the_rest, share_tokens

log = logging.getLogger(__name__)

_OF_SHARES = (Style.COLWISE, Style.ROWWISE)
_ENTERED = (Style.COLWISE, Style.COLWISE_GATHER)


def check_sizes(config: Any, tensor_parallel_size: int, uneven_heads: str) -> None:
    """Refuse a size that doesn't divide the LLM's attention heads, unless they are to be gathered, or its features.

    Args:
        config: the LLM's Hugging Face config.
        tensor_parallel_size: processes that share each matrix.
        uneven_heads: `ParallelConfig.uneven_heads`.

    Raises:
        ValueError: with both numbers and the sizes that work.
    """
    gathers = uneven_heads == "gather"
    for key, number in _to_divide(config, gathers).items():
        if number % tensor_parallel_size:
            hint = ""
            if key.endswith("heads"):
                hint = ", or parallel.uneven_heads=gather (each process computes all of attention, and has its share of"
                hint += " the matrices only)"
            raise ValueError(
                f"trainer.strategy.tensor_parallel_size ({tensor_parallel_size}) must divide {key} ({number}): use"
                f" {join_sizes(sizes_for(config, uneven_heads))}{hint}"
            )


def sizes_for(config: Any, uneven_heads: str = "refuse") -> list[int]:
    """Tensor parallel sizes that an LLM's config allows."""
    numbers = _to_divide(config, uneven_heads == "gather").values()
    return divisors(math.gcd(*numbers))


def _to_divide(config: Any, gathers: bool) -> dict[str, int]:
    keys = ["hidden_size", "intermediate_size"]
    if not gathers:
        keys = ["num_attention_heads", "num_key_value_heads", *keys]
    found = {key: getattr(config, key, None) for key in keys}
    return {key: number for key, number in found.items() if isinstance(number, int)}


def apply_tensor_parallel(parts: ModelParts, mesh: DeviceMesh, config: ParallelConfig) -> None:
    """Share layers, embeddings and heads of a model between the processes of `mesh`.

    The modules are changed in place; their parameters become DTensors on `mesh`, their names stay. Heads give DTensors
    with placement Shard(-1), all else takes and gives what it did before.

    Args:
        parts: the model's; its weights have to be the same on all processes.
        mesh: of one dimension.
        config: `sequence_parallel` is in force where gradients are computed (generation reads one frame);
            `uneven_heads`; `compile` compiles what a layer computes with its share of the parameters.

    Raises:
        ValueError: no plan, or one that doesn't fit the model; heads or features that don't divide.
    """
    check_sizes(parts.config, mesh.size(), config.uneven_heads)
    plan = plan_for(parts.config)
    sequence_parallel = config.sequence_parallel and plan.sequence_parallel
    styles = _resolve(plan, parts.body)
    if any(number % mesh.size() for number in _to_divide(parts.config, gathers=False).values()):
        styles = _gather_attention(styles, parts.body)
        _warn_once("attention heads of %s don't divide by %d: each process computes all", plan.family, mesh.size())
    distributor = Distributor(mesh)
    names = {module: name for name, module in parts.body.named_modules()}
    for layer in parts.layers:
        entries = _share_layer(layer, names, styles, mesh.get_group(), sequence_parallel)
        _check_divides(entries, names, mesh.size())
        for entry in entries:
            distributor.distribute(entry)
        if config.compile:
            compile_in_training(layer)
        compute_locally(layer, entries, mesh)
    if sequence_parallel:
        _share_frames(parts, mesh.get_group())
    share_tokens(parts, distributor, mesh)
    copy_the_rest(parts, distributor, mesh)


def _warn_once(text: str, *args: object) -> None:
    if torch.distributed.get_rank() == 0:
        log.warning(text, *args)


# --- the plan ----------------------------------------------------------------------------------------------


def _resolve(plan: Plan, body: nn.Module) -> dict[str, Style]:
    """Styles by the names of modules and parameters in `body`."""
    names = [name for name, _ in body.named_modules()] + [name for name, _ in body.named_parameters()]
    styles: dict[str, Style] = {}
    for pattern, style in plan.styles.items():
        regex = re.compile(re.escape(pattern).replace(r"\*", r"\d+") + "$")
        matches = [name for name in names if regex.match(name)]
        if not matches and pattern not in plan.optional:
            raise ValueError(
                f"the tensor parallel plan of {plan.family} names {pattern!r}, but the LLM has no such module or"
                f" parameter; it has {', '.join(_of_a_layer(names))}. Register a plan that fits:"
                " s2s_parallel.registry.register_family"
            )
        styles |= dict.fromkeys(matches, style)
    return styles


def _of_a_layer(names: list[str]) -> list[str]:
    return [name.replace(".0.", ".*.", 1) for name in names if re.match(r"\w+\.0\.", name)]


def _gather_attention(styles: dict[str, Style], body: nn.Module) -> dict[str, Style]:
    """The styles with attention computed whole by each peer."""
    gathered = {
        Style.COLWISE: Style.COLWISE_GATHER,
        Style.ROWWISE: Style.ROWWISE_SPLIT,
        Style.LOCAL_USE: Style.REPLICATE,
        Style.LOCAL_SHARE: Style.REPLICATE,
    }
    return {
        name: gathered.get(style, style) if re.search(r"\.\w*att\w*\.", name) else style
        for name, style in styles.items()
    }


# --- layers ------------------------------------------------------------------------------------------------


def _share_layer(
    layer: nn.Module, names: dict[nn.Module, str], styles: dict[str, Style], group: ProcessGroup, frames_shared: bool
) -> list[LocalParameter]:
    """Put the exchanges between peers into a layer; return how each of its parameters is shared."""
    entries: list[LocalParameter] = []
    for child in layer.children():
        leaves = _leaves(child, names, styles)
        if leaves:
            entries += _share_block(child, leaves, names, styles, group, frames_shared)
            continue
        mixes = any(parameter.ndim > 1 for parameter in child.parameters())  # frames or features, other than a norm
        if mixes:
            _warn_once("tensor parallelism: the plan leaves out %s, which each process computes whole", names[child])
        use = Use.SUMMAND if frames_shared and not mixes else Use.WHOLE
        entries += [LocalParameter(m, p, use) for m in child.modules() for p in direct_parameters(m)]
        if mixes and frames_shared:
            wrap_forward(child, _whole_block, group)
    use = Use.SUMMAND if frames_shared else Use.WHOLE
    return entries + [LocalParameter(layer, name, use) for name in direct_parameters(layer)]


def _leaves(block: nn.Module, names: dict[nn.Module, str], styles: dict[str, Style]) -> dict[nn.Module, Style]:
    """The outermost modules of a block that the plan names."""
    name = names[block]
    if name in styles:
        return {block: styles[name]}
    found: dict[nn.Module, Style] = {}
    for child in block.children():
        found |= _leaves(child, names, styles)
    return found


def _share_block(
    block: nn.Module,
    leaves: dict[nn.Module, Style],
    names: dict[nn.Module, str],
    styles: dict[str, Style],
    group: ProcessGroup,
    frames_shared: bool,
) -> list[LocalParameter]:
    entries: list[LocalParameter] = []
    for leaf, style in leaves.items():
        entries += leaf_parameters(leaf, names[leaf], style)
    others = _unplanned(block, entries, names, styles)
    _check_between(block, leaves, others, names)
    # A block of planned matrices alone is entered and left by all of them together. In others (a router beside the
    # experts) some things are computed alike by all peers, and each matrix is entered and left for itself.
    sums = [leaf for leaf, style in leaves.items() if style in (Style.ROWWISE, Style.ROWWISE_SPLIT)]
    together = not others and Style.EXPERTS not in leaves.values() and len(sums) == 1
    for leaf, style in leaves.items():
        _share_leaf(leaf, names[leaf], style, group, together=together, frames_shared=frames_shared)
    if together:
        wrap_forward(block, _enter_block, group, frames_shared)
    elif frames_shared:
        wrap_forward(block, _whole_block, group)
    return entries + others


def _unplanned(
    block: nn.Module, planned: list[LocalParameter], names: dict[nn.Module, str], styles: dict[str, Style]
) -> list[LocalParameter]:
    """The other parameters of a block; the plan may name one by itself."""
    taken = {(entry.module, entry.name) for entry in planned}
    entries = []
    for module in block.modules():
        for name in direct_parameters(module):
            if (module, name) not in taken:
                style = styles.get(f"{names[module]}.{name}")
                uses = {Style.LOCAL_USE: Use.SUMMAND, Style.LOCAL_SHARE: Use.ROWS}
                entries.append(LocalParameter(module, name, uses.get(style, Use.WHOLE) if style else Use.WHOLE))
    return entries


def _check_between(
    block: nn.Module, leaves: dict[nn.Module, Style], others: list[LocalParameter], names: dict[nn.Module, str]
) -> None:
    """Refuse parameters used on shares of features, of which the plan doesn't know."""
    for parent in block.modules():
        styles = {leaves[child] for child in parent.children() if child in leaves}
        if not set(_OF_SHARES) <= styles:
            continue
        inside = set(parent.modules())
        unknown = [entry for entry in others if entry.module in inside and entry.use is Use.WHOLE]
        if unknown:
            listed = ", ".join(f"{names[entry.module]}.{entry.name}" for entry in unknown)
            raise ValueError(
                f"the tensor parallel plan shares the matrices of {names[parent]} and says nothing of {listed}, which"
                " may lie between them: its gradient would be wrong. Name it in a plan of your own, for instance as"
                f" {Style.LOCAL_USE.value!r} (used on a peer's heads or features) or {Style.REPLICATE.value!r} (used"
                " on whole tensors): s2s_parallel.registry.register_family"
            )


def _share_leaf(
    leaf: nn.Module, name: str, style: Style, group: ProcessGroup, *, together: bool, frames_shared: bool
) -> None:
    if style is Style.EXPERTS:
        share_experts(leaf, name, group)
    elif style in (Style.COLWISE, Style.COLWISE_GATHER):
        wrap_forward(leaf, _colwise, group, not together, style is Style.COLWISE_GATHER)
    elif style in (Style.ROWWISE, Style.ROWWISE_SPLIT):
        wrap_forward(leaf, _rowwise, group, together and frames_shared, style is Style.ROWWISE_SPLIT)


def _colwise(
    group: ProcessGroup, enters: bool, gathers: bool, forward: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    y = forward(peers.enter(x, group) if enters else x)
    return peers.gather_whole(y, -1, group) if gathers else y


def _rowwise(group: ProcessGroup, shares: bool, splits: bool, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y = forward(peers.take_share(x, -1, group) if splits else x)
    if shares and frames_are_shared():
        return peers.sum_and_share(y, FRAMES, group)
    return peers.sum_summands(y, group)


def _enter_block(
    group: ProcessGroup, frames_shared: bool, forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    if frames_shared and frames_are_shared():
        return forward(*_on_hidden(lambda x: peers.gather_and_enter(x, FRAMES, group), args, kwargs), **kwargs)
    return forward(*_on_hidden(lambda x: peers.enter(x, group), args, kwargs), **kwargs)


def _whole_block(group: ProcessGroup, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not frames_are_shared():
        return forward(*args, **kwargs)
    output = forward(*_on_hidden(lambda x: peers.gather_whole(x, FRAMES, group), args, kwargs), **kwargs)
    return _on_output(lambda x: peers.take_share(x, FRAMES, group), output)


def _on_hidden(function: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Apply `function` to the hidden states among arguments, which families pass by place or by name."""
    if args:
        return function(args[0]), *args[1:]
    kwargs["hidden_states"] = function(kwargs["hidden_states"])
    return ()


def _on_output(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    return (function(output[0]), *output[1:]) if isinstance(output, tuple) else function(output)


def _check_divides(entries: list[LocalParameter], names: dict[nn.Module, str], num_peers: int) -> None:
    for entry in entries:
        dim = {Use.ROWS: 0, Use.COLUMNS: 1}.get(entry.use)
        parameter = entry.module._parameters[entry.name]
        assert parameter is not None
        if dim is not None and parameter.shape[dim] % num_peers:
            size = parameter.shape[dim]
            raise ValueError(
                f"trainer.strategy.tensor_parallel_size ({num_peers}) must divide dimension {dim} of"
                f" {names[entry.module]}.{entry.name} ({size}): use {join_sizes(divisors(size)[:8])}"
            )


# --- frames between blocks ---------------------------------------------------------------------------------


def _share_frames(parts: ModelParts, group: ProcessGroup) -> None:
    wrap_forward(parts.body, _padded_body, group.size())
    wrap_forward(parts.layers[0], _first_layer, group)
    wrap_forward(parts.layers[-1], _last_layer, group)


def _padded_body(num_peers: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Pad frames to a multiple of the peers, behind the last: a causal LLM sees nothing of it."""
    embeds_BTH: Tensor | None = kwargs.get("inputs_embeds")
    missing = 0 if embeds_BTH is None else -embeds_BTH.shape[1] % num_peers
    if not missing or not frames_are_shared():
        return forward(*args, **kwargs)
    assert embeds_BTH is not None
    kwargs["inputs_embeds"] = F.pad(embeds_BTH, (0, 0, 0, missing))
    if kwargs.get("attention_mask") is not None:
        kwargs["attention_mask"] = F.pad(kwargs["attention_mask"], (0, missing))
    output = forward(*args, **kwargs)
    output.last_hidden_state = output.last_hidden_state[:, : embeds_BTH.shape[1]]
    return output


def _first_layer(group: ProcessGroup, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not frames_are_shared():
        return forward(*args, **kwargs)
    return forward(*_on_hidden(lambda x: peers.take_share(x, FRAMES, group), args, kwargs), **kwargs)


def _last_layer(group: ProcessGroup, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    output = forward(*args, **kwargs)
    return _on_output(lambda x: peers.gather_whole(x, FRAMES, group), output) if frames_are_shared() else output
