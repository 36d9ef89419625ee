"""The LLM's layers compiled for generation: one compilation serves all of them.

Shapes: `B` sessions, `N` key heads, `G` query heads of one, `D` a head's width, `M` frames of the cache's room,
`P` parts of it, `C` frames of a part.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from s2s_model.frame_cache import LONG_FRAMES, LONG_ROOM_FRAMES
from s2s_model.skinny_linear import group_linears, has_kernel
from s2s_parallel.forwards import unwrap_forward, wrap_forward

ATTENTION = "s2s_frame"  # its name in transformers' registry


@contextmanager
def compiled_blocks(blocks: Sequence[nn.Module], kept: Any, llm_config: Any) -> Iterator[None]:
    """Within this the LLM's layers are compiled, each with its own layer of the cache.

    Args:
        blocks: the layers, first to last; their classes are changed meanwhile.
        kept: the cache, from `make_cache`.
        llm_config: their transformers config, whose attention is changed meanwhile.
    """
    _register_attention()
    attention = llm_config._attn_implementation
    done = []
    try:
        if attention == "sdpa":
            llm_config._attn_implementation = ATTENTION
        for block, layer in zip(blocks, kept.layers, strict=True):
            block_class: Any = type(block)
            wrap_forward(block, _forward, _compiled(block_class), kept, layer)
            done.append(block)
        yield
    finally:
        for block in done:
            unwrap_forward(block, _forward)
        llm_config._attn_implementation = attention


@cache
def _compiled(block_class: Any) -> Callable[..., Any]:
    # The family's own function: transformers wraps all families' in one, and torch counts recompilations by function.
    compiled: Callable[..., Any] = torch.compile(inspect.unwrap(block_class.forward), backend=_compile_grouped)
    return compiled


def _compile_grouped(graph_module: GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
    """As Inductor; the linear layers of one input are computed together, where there is a kernel for that."""
    from torch._dynamo import lookup_backend

    group_linears(graph_module, has_kernel)
    compiled: Callable[..., Any] = lookup_backend("inductor")(graph_module, example_inputs)
    return compiled


def _forward(compiled: Callable[..., Any], kept: Any, layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
    own_args = [layer if value is kept else value for value in args]
    own_kwargs = {key: layer if value is kept else value for key, value in kwargs.items()}
    return compiled(forward.args[0], *own_args, **own_kwargs)


@cache
def _register_attention() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls: `frame_attention` where that will do, else its own `sdpa`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    known = {"dropout", "scaling", "is_causal", "sliding_window", "position_ids", "use_cache"}
    others = {name for name, option in options.items() if name not in known and option is not None}
    if query.shape[2] != 1 or attention_mask is None or attention_mask.dtype != torch.bool or others:
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    scaling = options.get("scaling")
    return frame_attention(query, key, value, attention_mask, scaling or query.shape[-1] ** -0.5), None


def frame_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Attention of one frame over a long cache, in parts that a GPU works on side by side.

    Fused kernels give one block of the GPU all frames of a head, and torch's need keys repeated for each query head,
    where there is a mask.

    Args:
        query: [B, N * G, 1, D].
        key: [B, N, M, D].
        value: [B, N, M, D'].
        mask: bool [B, 1 or N * G, 1, M], True where the frame hears.
        scaling: factor on the scores.

    Returns:
        [B, 1, N * G, D'] in the query's dtype.
    """
    B, N, M, D = key.shape
    G = query.shape[1] // N
    P = M // LONG_ROOM_FRAMES if M > LONG_FRAMES and M % LONG_ROOM_FRAMES == 0 else 1
    C = M // P
    query = (query * scaling).view(B, N, 1, G, D).expand(-1, -1, P, -1, -1).reshape(B * N * P, G, D)
    scores = torch.bmm(query, key.view(B * N * P, C, D).transpose(1, 2)).float().view(B, N, P, G, C)
    heard = mask.expand(-1, N * G, -1, -1).view(B, N, G, P, C).transpose(2, 3)
    scores = scores.masked_fill(~heard, -torch.inf)
    weights = (scores - scores.amax((2, 4), keepdim=True)).exp()
    parts = torch.bmm(weights.to(value.dtype).view(B * N * P, G, C), value.view(B * N * P, C, -1))
    out = parts.view(B, N, P, G, -1).float().sum(2) / weights.sum((2, 4))[..., None]
    return out.to(query.dtype).view(B, 1, N * G, -1)
