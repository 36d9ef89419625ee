"""Attention of a Conformer with limited context, block by block: time and memory grow with the length, not its square.

NeMo computes the scores of all pairs of frames and hides those beyond the context. Here each block of `W` frames reads
itself and the block before, which holds all it may hear. The numbers are the same, up to rounding. The attention is
that of Transformer-XL (arXiv 1901.02860, section 3.3).

Shapes: `B` batch, `T` frames, `Q` blocks of `W` frames, `L` distances, `N` attention heads, `D` a head's width, `C` the
encoder's.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout, linear, pad, scaled_dot_product_attention

from s2s_parallel.forwards import wrap_forward

ALIGNMENT = 8  # fused attention reads scores in pieces of 16 bytes
SHORTEST_BLOCK = 32
HIDDEN = -1e4  # finite: where all is hidden, behind a recording's end, no NaN may arise


def attend_locally(encoder: Any) -> bool:
    """Let a NeMo `ConformerEncoder` attend so, in place, if its context is limited; return whether it is."""
    from nemo.collections.asr.parts.submodules.multi_head_attention import RelPositionMultiHeadAttention

    contexts = getattr(encoder, "att_context_size_all", None) or []
    attentions: list[Any] = [getattr(layer, "self_attn", None) for layer in getattr(encoder, "layers", [])]
    limited = (
        bool(attentions)
        and getattr(encoder, "self_attention_model", None) == "rel_pos"
        and all(type(attention) is RelPositionMultiHeadAttention for attention in attentions)
        and all(attention.use_pytorch_sdpa for attention in attentions)  # else NeMo's own attention is asked for
        and all(_is_limited(encoder.att_context_style, context) for context in contexts)
    )
    if limited:
        encoder.__class__ = _local_class(type(encoder))
        for attention in attentions:
            wrap_forward(attention, _attend)
    return limited


def _is_limited(style: str, context: list[int]) -> bool:
    left, right = context[0], context[-1]
    return len(context) == 2 and left >= 0 and (right == 0 if style == "regular" else right >= 0)


_CLASSES: dict[type, type] = {}


def _local_class(base: Any) -> Any:
    """A subclass whose masks are those of blocks; a class of its own survives deep copies, unlike a method."""
    if base not in _CLASSES:
        traits = {"_create_masks": _create_masks, "__module__": base.__module__, "__qualname__": base.__qualname__}
        _CLASSES[base] = type(base.__name__, (base,), traits)
    return _CLASSES[base]


def _create_masks(
    self: Any,
    att_context_size: list[int],
    padding_length: Tensor,
    max_audio_length: int,
    offset: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """In place of NeMo's: True beyond a recording's end [B, T], and where a block may not hear [B * Q, 1, W, 2 * W].

    In place of the latter the recordings' lengths [B] where a kernel attends.
    """
    assert offset is None, "NeMo's own streaming isn't used here"
    left, right = att_context_size
    chunk = right + 1
    reach = left // chunk * chunk  # frames before its own chunk that a frame hears
    beyond_BT = torch.arange(max_audio_length, device=device) >= padding_length[:, None]
    if _has_kernels(self.layers[0].self_attn, device):
        for layer in self.layers:
            layer.self_attn.context = (reach, chunk)
        return beyond_BT, padding_length
    width = block_frames(reach, chunk)
    num_blocks = max_audio_length // width + 1
    query_W1 = torch.arange(width, device=device)[:, None]
    key_J = torch.arange(-width, width, device=device)  # from the block's first frame on
    back_WJ = query_W1 // chunk - key_J.div(chunk, rounding_mode="floor")
    beyond_WJ = (back_WJ < 0) | (back_WJ > reach // chunk)
    frame_QJ = key_J + torch.arange(num_blocks, device=device)[:, None] * width
    absent_BQJ = (frame_QJ < 0) | (frame_QJ >= padding_length[:, None, None])
    hidden = beyond_WJ | absent_BQJ[:, :, None]
    return beyond_BT, hidden.flatten(0, 1)[:, None]


def _has_kernels(attention: Any, device: torch.device) -> bool:
    """Whether `local_attention_triton` serves: it has no dropout."""
    return device.type == "cuda" and not (attention.training and attention.dropout_rate)


def block_frames(reach: int, chunk: int) -> int:
    """W: no less than what is heard before a chunk, so that one block before is enough; a multiple of whole chunks."""
    unit = math.lcm(chunk, ALIGNMENT)
    return -(-max(reach, SHORTEST_BLOCK) // unit) * unit


def _attend(
    forward: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    pos_emb: Tensor,
    cache: Tensor | None = None,
) -> Tensor:
    """In place of NeMo's forward; `mask` is that of `_create_masks`, `pos_emb` [1, 2 * T - 1, C] from far to near."""
    attention: Any = forward.args[0]  # type: ignore[attr-defined]
    assert cache is None, "NeMo's own streaming isn't used here"
    assert query is key is value, "a Conformer's attention is one of a recording to itself"
    if _has_kernels(attention, query.device):
        return _attend_by_kernels(attention, query, mask, pos_emb)
    B, T, C = query.shape
    W = mask.shape[2]
    missing = W - T % W  # never 0: torch.compile would compile whole blocks apart
    query_BNTD, key_BNTD, value_BNTD = _project(attention, pad(query, (0, 0, 0, missing)))
    by_content = _blocks(query_BNTD + attention.pos_bias_u[:, None], W)
    by_position = _blocks(query_BNTD + attention.pos_bias_v[:, None], W)
    positions_NDP = attention.linear_pos(_near(pos_emb, W)).unflatten(-1, (attention.h, -1)).permute(1, 2, 0)
    # By head, not by block: the positions are the same for all blocks.
    scores = by_position.transpose(0, 1).flatten(1, 2) @ positions_NDP
    bias = _shift(scores.unflatten(1, (-1, W)).transpose(0, 1)) / attention.s_d_k
    out = (_weigh_compiled if torch.compiler.is_compiling() else scaled_dot_product_attention)(
        by_content,
        _with_block_before(key_BNTD, W),
        _with_block_before(value_BNTD, W),
        attn_mask=bias.masked_fill(mask, HIDDEN),
        dropout_p=attention.dropout_rate if attention.training else 0.0,
    )
    out_BTC = out.unflatten(0, (B, -1)).permute(0, 1, 3, 2, 4).reshape(B, T + missing, C)
    mixed: Tensor = attention.linear_out(out_BTC[:, :T])
    return mixed


def _attend_by_kernels(attention: Any, x_BTC: Tensor, lens_B: Tensor, pos_emb: Tensor) -> Tensor:
    from s2s_model.perception.local_attention_triton import attend_locally_cuda

    reach, chunk = attention.context
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_BTC.dtype
    query, key, value = (each.transpose(1, 2).to(dtype) for each in _project(attention, x_BTC))  # [B, T, N, D]
    positions_LND = attention.linear_pos(_within(pos_emb, reach, chunk)).unflatten(-1, (attention.h, -1))
    by_position = (query + attention.pos_bias_v.to(dtype)).flatten(0, 1).transpose(0, 1)
    bias_NFL = by_position @ positions_LND.permute(1, 2, 0)
    by_content = query + attention.pos_bias_u.to(dtype)
    out_BTND, _ = attend_locally_cuda(by_content, key, value, bias_NFL, lens_B, reach, chunk)
    mixed: Tensor = attention.linear_out(out_BTND.flatten(2))
    return mixed


def _within(pos_emb: Tensor, reach: int, chunk: int) -> Tensor:
    """The embedded distances `reach + chunk - 1`, .., and as many more as fused products like."""
    farthest = reach + chunk - 1
    num_distances = -(-(farthest + chunk) // ALIGNMENT) * ALIGNMENT
    zero = pos_emb.shape[1] // 2  # where distance 0 stands
    # Padded always, not where it is needed: torch.compile would compile short recordings apart.
    return pad(pos_emb[0], (0, 0, farthest, num_distances))[zero : zero + num_distances]


def _weigh_compiled(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
    """As torch's fused attention. With so few keys two products, and one kernel between them, take half its time."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + attn_mask
    weights = dropout(scores.float().softmax(dim=-1), dropout_p).to(value.dtype)
    return weights @ value


def _project(attention: Any, x_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, N, T, D] by one product instead of three."""
    layers = (attention.linear_q, attention.linear_k, attention.linear_v)
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    projected = linear(x_BTC, weight, bias).unflatten(-1, (3, attention.h, attention.d_k))
    query, key, value = projected.permute(2, 0, 3, 1, 4)
    return query, key, value


def _blocks(x_BNTD: Tensor, width: int) -> Tensor:
    """[B, N, Q * W, D] to [B * Q, N, W, D]."""
    blocks: Tensor = x_BNTD.unflatten(2, (-1, width)).transpose(1, 2).flatten(0, 1)
    return blocks


def _with_block_before(x_BNTD: Tensor, width: int) -> Tensor:
    """Blocks with the one before each, zeros before the first: [B * Q, N, 2 * W, D]."""
    before = pad(x_BNTD[:, :, :-width], (0, 0, width, 0))
    return torch.cat([_blocks(before, width), _blocks(x_BNTD, width)], dim=2)


def _near(pos_emb: Tensor, width: int) -> Tensor:
    """The embedded distances 2 * W - 1, .., -W; zeros for those that the recording is too short for."""
    zero = pos_emb.shape[1] // 2  # where distance 0 stands
    # Padded always, not where it is needed: torch.compile would compile short recordings apart.
    return pad(pos_emb[0], (0, 0, 2 * width, width))[zero + 1 : zero + 1 + 3 * width]


def _shift(scores: Tensor) -> Tensor:
    """Scores by distance [.., W, 3 * W] to scores by key [.., W, 2 * W]: row w begins at distance W + w."""
    W = scores.shape[-2]
    flat = scores.flatten(-2)[..., W - 1 : W - 1 + W * (3 * W - 1)]
    by_key: Tensor = flat.unflatten(-1, (W, 3 * W - 1))[..., : 2 * W]
    return by_key
