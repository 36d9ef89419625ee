"""How the layers of each LLM family are shared between tensor parallel peers.

A plan maps names of modules or parameters, relative to the LLM's body, to styles; `*` stands for a layer's number.
Most families bring theirs in their Hugging Face config (`base_model_tp_plan`). A family that needs another one is
registered below, or by a user:

    from s2s_parallel.registry import FamilySpec, register_family

    register_family("my_llm", FamilySpec(plan={"layers.*.attn.qkv": "colwise", "layers.*.attn.out": "rowwise"}))
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Style(Enum):
    """How a module's weights are shared, and what its output then is."""

    COLWISE = "colwise"  # rows of [out, in]: whole input, a share of the output
    ROWWISE = "rowwise"  # columns of [out, in]: a share of the input, the whole output by summing
    COLWISE_GATHER = "colwise_gather_output"  # as colwise, the output gathered
    ROWWISE_SPLIT = "rowwise_split_input"  # as rowwise, from a whole input
    LOCAL_USE = "replicated_with_grad_allreduce"  # a copy each, used on that peer's heads alone
    LOCAL_SHARE = "local_params"  # rows of a parameter, such as one number a head
    EXPERTS = "experts"  # some of the experts of a mixture
    REPLICATE = "replicate"  # a copy each, used on whole tensors


# Styles of Hugging Face's plans by other names. A fused projection (packed) lies in memory part after part, so that a
# peer's rows wouldn't be its share of each part: its output is gathered.
_SYNONYMS = {
    "packed_colwise": Style.COLWISE_GATHER,
    "packed_rowwise": Style.ROWWISE_SPLIT,
    "moe_tp_experts": Style.EXPERTS,
}
# What is shared in one way for all families, whatever a plan says: embeddings, heads and the last norm.
_NOT_LAYERS = ("embed_tokens", "lm_head", "norm")


@dataclass(frozen=True)
class FamilySpec:
    """What is to be known of a family.

    Attributes:
        plan: the whole plan; None: that of the model's config.
        overrides: styles put into the plan, or over what it says.
        optional: patterns that some models of the family have nothing for.
        sequence_parallel: whether frames may be shared between its layers' matrices.
        context_parallel: whether its layers see other frames by transformers' attention alone, which gathers them.
    """

    plan: Mapping[str, str] | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    sequence_parallel: bool = True
    context_parallel: bool = False


@dataclass(frozen=True)
class Plan:
    """Styles by pattern, checked."""

    family: str
    styles: Mapping[str, Style]
    optional: tuple[str, ...]
    sequence_parallel: bool


_ATTENTION = {f"layers.*.self_attn.{name}_proj": Style.COLWISE.value for name in "qkv"} | {
    "layers.*.self_attn.o_proj": Style.ROWWISE.value
}
_QK_NORMS = {f"layers.*.self_attn.{name}": Style.LOCAL_USE.value for name in ("q_norm", "k_norm")}
_EXPERTS = {"layers.*.mlp.experts": Style.EXPERTS.value}
_DENSE_LAYERS = tuple(f"layers.*.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj"))

_FAMILIES: dict[str, FamilySpec] = {
    "qwen3": FamilySpec(overrides=_QK_NORMS),
    "gemma3_text": FamilySpec(overrides=_QK_NORMS),
    # Its activation has weights, used on a share of the features.
    "apertus": FamilySpec(overrides=_QK_NORMS | {"layers.*.mlp.act_fn": Style.LOCAL_USE.value}),
    "qwen3_moe": FamilySpec(overrides=_QK_NORMS | _EXPERTS, optional=_DENSE_LAYERS),
    "mixtral": FamilySpec(overrides=_EXPERTS),
    "gpt_oss": FamilySpec(plan=_ATTENTION | {"layers.*.self_attn.sinks": Style.LOCAL_SHARE.value} | _EXPERTS),
    # Its config has no plan in transformers 5.17.
    "nemotron": FamilySpec(
        plan=_ATTENTION | {"layers.*.mlp.up_proj": Style.COLWISE.value, "layers.*.mlp.down_proj": Style.ROWWISE.value}
    ),
}


# Those of docs/parallel-families.md, whose table has context parallelism too.
_CONTEXT_PARALLEL = (
    "apertus", "cohere", "gemma", "gemma2", "gemma3_text", "glm4", "gpt_oss", "granite", "llama", "mistral", "mixtral",
    "nemotron", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip


def check_shares_frames(config: Any) -> None:
    """Refuse a family that isn't known to see other frames by transformers' attention alone.

    Raises:
        ValueError: with those that are.
    """
    registered = sorted(name for name, spec in _FAMILIES.items() if spec.context_parallel)
    known = [*_CONTEXT_PARALLEL, *(name for name in registered if name not in _CONTEXT_PARALLEL)]
    if config.model_type not in known:
        raise ValueError(
            f"trainer.strategy.context_parallel_size: {config.model_type} LLMs aren't known to share frames, as"
            f" {', '.join(known)} are: set it to 1, or register the family with context_parallel=True if its layers see"
            " other frames by transformers' attention alone (s2s_parallel.registry.register_family)"
        )


def register_family(model_type: str, spec: FamilySpec) -> None:
    """Let LLMs whose config has this `model_type` be shared as `spec` says, over what was known before.

    Raises:
        ValueError: an unknown style.
    """
    for source in (spec.plan or {}, spec.overrides):
        for pattern, style in source.items():
            _style(style, pattern, model_type)
    _FAMILIES[model_type] = spec


def plan_for(config: Any) -> Plan:
    """The plan of an LLM by its Hugging Face config.

    Raises:
        ValueError: the family has no plan, or its plan has an unknown style.
    """
    family = str(config.model_type)
    spec = _FAMILIES.get(family, FamilySpec())
    plan = spec.plan if spec.plan is not None else getattr(config, "base_model_tp_plan", None)
    if not plan:
        raise ValueError(
            f"trainer.strategy.tensor_parallel_size: {family} LLMs come without a plan for tensor parallelism: set it"
            " to 1 (FSDP shards any family), or register a plan with s2s_parallel.registry.register_family"
        )
    named = {**plan, **spec.overrides}
    styles = {
        pattern: _style(style, pattern, family)
        for pattern, style in named.items()
        if pattern.partition(".")[0] not in _NOT_LAYERS
    }
    return Plan(family, _without_parts_of_experts(styles), spec.optional, spec.sequence_parallel)


def _style(name: str, pattern: str, family: str) -> Style:
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    known = {style.value: style for style in Style}
    if name not in known:
        near = difflib.get_close_matches(name, [*known, *_SYNONYMS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join([*known, *_SYNONYMS])}."
        raise ValueError(
            f"the tensor parallel plan of {family} has the unknown style {name!r} for {pattern!r}: {hint} A plan of"
            " your own goes before it: s2s_parallel.registry.register_family"
        )
    return known[name]


def _without_parts_of_experts(styles: Mapping[str, Style]) -> dict[str, Style]:
    """Experts are shared as wholes, so that nothing is left to say about their parameters."""
    wholes = tuple(f"{pattern}." for pattern, style in styles.items() if style is Style.EXPERTS)
    return {pattern: style for pattern, style in styles.items() if not pattern.startswith(wholes)}
