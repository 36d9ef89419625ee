"""Context parallelism: the frames of a long dialogue are shared, and attention reads the keys and values of all.

Each peer runs the LLM's layers on its share of the frames, and only its attention asks for more: keys and values are
gathered, once a layer (as in Llama 3's training, arXiv 2407.21783, section 3.3.2). Encoder, embeddings, heads and
losses see all frames on every peer, as they do on tensor parallel peers, so nothing outside the body knows of it.

It goes through transformers' own registry of attentions; `registry.check_shares_frames` has the families whose layers
see other frames by that alone.

Shapes: `B` batch, `T` frames, `H` hidden; queries, keys and values are [B, heads, T, size].
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from s2s_parallel import collectives as peers
from s2s_parallel.collectives import FRAMES, frames_are_shared
from s2s_parallel.forwards import wrap_forward
from s2s_parallel.parts import ModelParts
from s2s_parallel.registry import check_shares_frames

KEY_FRAMES = 2  # that of keys and values
ATTENTIONS = ("sdpa", "eager")
OF_LENGTH = ("dynamic", "longrope")  # rotary frequencies that are chosen by the last position
_SUFFIX = "_context_parallel"
_CONTEXT = "_context_parallel"  # where an attention module keeps its peers and what it computes with
_sharing: ContextVar[ProcessGroup | None] = ContextVar("_sharing", default=None)  # in a body that shares its frames


def check_context_parallel(config: Any) -> None:
    """Refuse an LLM whose frames can't be shared, by its Hugging Face config.

    Raises:
        ValueError: the family isn't known to see other frames by attention alone, its attention isn't transformers'
            own, or its rotary frequencies follow the length, of which a peer sees its share.
    """
    check_shares_frames(config)
    attention = getattr(config, "_attn_implementation", None)
    if attention not in (None, *ATTENTIONS):
        raise ValueError(
            f"trainer.strategy.context_parallel_size: model.attn_implementation is {attention}, of which keys and"
            f" values can't be gathered: use {' or '.join(ATTENTIONS)}"
        )
    following = sorted(set(OF_LENGTH) & _rope_types(getattr(config, "rope_parameters", None) or {}))
    if following:
        raise ValueError(
            f"trainer.strategy.context_parallel_size: the LLM's rotary frequencies follow the length (rope_type"
            f" {following[0]}), of which a process would see its share alone: set it to 1"
        )


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Some families have parameters for each kind of layer."""
    kinds = [value for value in parameters.values() if isinstance(value, dict)]
    return {str(kind.get("rope_type")) for kind in (parameters, *kinds)}


def apply_context_parallel(parts: ModelParts, group: ProcessGroup, multiple: int = 1) -> None:
    """Share the frames of the LLM's body between the processes of `group`, in place.

    The body takes and gives whole tensors, the same on all peers. Its parameters' gradients are those of a peer's
    frames, times the number of peers: their mean over peers, which FSDP takes, is the gradient.

    Args:
        parts: the model's, after tensor parallelism.
        group: the peers; they have the same dialogues.
        multiple: of which each share's number of frames has to be; tensor parallel peers share it again.

    Raises:
        ValueError: see `check_context_parallel`; or a layer has no attention, or several.
    """
    check_context_parallel(parts.config)
    body = type(parts.body).__name__
    attentions = [_attention(layer, f"layer {index} of {body}") for index, layer in enumerate(parts.layers)]
    base = parts.config._attn_implementation
    parts.config._attn_implementation = _registered(base)
    for attention in attentions:
        setattr(attention, _CONTEXT, (group, _attention_of(base, attention)))
    wrap_forward(parts.body, _body, group, multiple)


def _attention(layer: nn.Module, name: str) -> nn.Module:
    found = [module for module in layer.modules() if hasattr(module, "is_causal")]  # transformers' mark of them
    if len(found) != 1:
        raise ValueError(
            f"trainer.strategy.context_parallel_size: {name} has {len(found)} attentions by transformers' registry"
            " instead of one: set it to 1"
        )
    return found[0]


def _body(group: ProcessGroup, multiple: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Pad frames behind the last, so that shares are even: a causal LLM sees nothing of it."""
    embeds_BTH: Tensor | None = kwargs.get("inputs_embeds")
    if embeds_BTH is None or not frames_are_shared():
        return forward(*args, **kwargs)
    assert kwargs.get("attention_mask") is None, "a training step of a causal LLM needs no mask"
    T, num_peers = embeds_BTH.shape[1], group.size()
    padded_BTH = F.pad(embeds_BTH, (0, 0, 0, -T % (num_peers * multiple)))
    share_BTH = peers.take_share(peers.scale_gradient(padded_BTH, 1 / num_peers), FRAMES, group)
    own = share_BTH.shape[1]
    positions = torch.arange(group.rank() * own, (group.rank() + 1) * own, device=share_BTH.device)
    with _shared(group):
        output = forward(*args, **{**kwargs, "inputs_embeds": share_BTH, "position_ids": positions[None]})
    hidden_BTH = peers.gather_whole(output.last_hidden_state, FRAMES, group)
    output.last_hidden_state = peers.scale_gradient(hidden_BTH, num_peers)[:, :T]
    return output


@contextmanager
def _shared(group: ProcessGroup) -> Iterator[None]:
    token = _sharing.set(group)
    try:
        yield
    finally:
        _sharing.reset(token)


# --- what transformers calls -------------------------------------------------------------------------------


def _registered(base: str) -> str:
    """The name of an attention that gathers and then computes as `base` does."""
    from transformers import AttentionInterface, AttentionMaskInterface

    name = base + _SUFFIX
    AttentionInterface.register(name, _attend)
    AttentionMaskInterface.register(name, partial(_mask, base))
    return name


def _attention_of(base: str, module: nn.Module) -> Callable[..., Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if base == "sdpa":
        return sdpa_attention_forward
    # Each family has its own, with its caps and sinks, beside its attention.
    eager: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return eager


def _attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any) -> Any:
    group, attention = getattr(module, _CONTEXT)
    if frames_are_shared():
        both = peers.gather_and_enter(torch.cat([key, value], -1), KEY_FRAMES, group)
        key, value = both.split([key.shape[-1], value.shape[-1]], -1)
    return attention(module, query, key, value, mask, **options)


def _mask(base: str, *, q_length: int, kv_length: int, **options: Any) -> Tensor | None:
    """Which of all frames each of a peer's own may see."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    group = _sharing.get()
    if group is not None:
        # Without a mask, attention would take a share's first frame for the first of all.
        options |= {"q_offset": group.rank() * q_length, "allow_is_causal_skip": False}
        kv_length = q_length * group.size()
    mask: Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS[base](q_length=q_length, kv_length=kv_length, **options)
    return mask
