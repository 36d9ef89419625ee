"""Attention of a Conformer with limited context on a GPU: scores are never stored, nor their gradients.

A program takes a tile of queries (or of keys, for their gradients) and goes over the keys (queries) within the context.
Scores by position come from outside, since they are a plain matrix product; they are read where a key's distance says.

Shapes: `B` batch, `T` frames, `N` heads, `D` a head's width, `L` distances, from the farthest that is heard to the
nearest.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

BLOCK = 64  # queries and keys of a tile

# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["T", "L"]
VARYING += [f"{name}_{of}" for name in ("q", "k", "v") for of in ("batch", "frame")]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _tile(x_ptr, example, batch, row, frame, head, there, D: tl.constexpr, BLOCK_D: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a head [rows, D] of [B, T, N, D] with these strides, zeros where they aren't there."""
    d = tl.arange(0, BLOCK_D)
    at = x_ptr + example * batch + row[:, None] * frame + head * D + d[None, :]
    return tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _scores(  # type: ignore[no-untyped-def]
    q, k, query, key, bias_ptr, end, T, L, scale, REACH: tl.constexpr, CHUNK: tl.constexpr
):
    """Scores of a tile [Q, K] where a query may hear a key, where that is, and where the scores by position lie."""
    back = query[:, None] // CHUNK - key[None, :] // CHUNK
    heard = (query < T)[:, None] & (key >= 0)[None, :] & (key < end)[None, :] & (back >= 0) & (back <= REACH // CHUNK)
    at = query[:, None] * L + (REACH + CHUNK - 1) - query[:, None] + key[None, :]
    by_position = tl.load(bias_ptr + at, mask=heard, other=0.0).to(tl.float32)
    return (tl.dot(q, tl.trans(k), input_precision="ieee") + by_position) * scale, heard, at


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _attend_kernel(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    lens_ptr,
    out_ptr,
    norm_ptr,
    q_batch,
    q_frame,
    k_batch,
    k_frame,
    v_batch,
    v_frame,
    T,
    L,
    scale,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REACH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin, head, example = tl.program_id(0) * BLOCK, tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    query = begin + tl.arange(0, BLOCK)
    end = tl.minimum(tl.load(lens_ptr + example), T)
    of_head = (head * tl.num_programs(2) + example) * T
    wanted = (query < T)[:, None] & (d < D)[None, :]
    q = _tile(q_ptr, example, q_batch, query, q_frame, head, query < T, D, BLOCK_D)
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    highest = tl.full([BLOCK], -1e30, tl.float32)
    weight = tl.zeros([BLOCK], tl.float32)
    for start in range(0, BLOCK + REACH + 2 * (CHUNK - 1), BLOCK):
        key = begin - REACH - (CHUNK - 1) + start + tl.arange(0, BLOCK)
        there = (key >= 0) & (key < T)
        k = _tile(k_ptr, example, k_batch, key, k_frame, head, there, D, BLOCK_D)
        v = _tile(v_ptr, example, v_batch, key, v_frame, head, there, D, BLOCK_D)
        scores, heard, _ = _scores(q, k, query, key, bias_ptr + of_head * L, end, T, L, scale, REACH, CHUNK)
        higher = tl.maximum(highest, tl.max(tl.where(heard, scores, -1e30), axis=1))
        weights = tl.where(heard, tl.exp(scores - higher[:, None]), 0.0)
        shrunk = tl.exp(highest - higher)
        weight = weight * shrunk + tl.sum(weights, axis=1)
        total = total * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        highest = higher
    weight = tl.where(weight > 0, weight, 1.0)  # behind a recording's end a frame may hear nothing
    to = out_ptr + ((example * T + query)[:, None] * N + head) * D + d[None, :]
    tl.store(to, (total / weight[:, None]).to(out_ptr.dtype.element_ty), mask=wanted)
    tl.store(norm_ptr + of_head + query, highest + tl.log(weight), mask=query < T)


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _queries_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    out_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    lens_ptr,
    norm_ptr,
    of_q_ptr,
    of_bias_ptr,
    dot_ptr,
    q_batch,
    q_frame,
    k_batch,
    k_frame,
    v_batch,
    v_frame,
    T,
    L,
    scale,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REACH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin, head, example = tl.program_id(0) * BLOCK, tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    query = begin + tl.arange(0, BLOCK)
    end = tl.minimum(tl.load(lens_ptr + example), T)
    of_head = (head * tl.num_programs(2) + example) * T
    wanted = (query < T)[:, None] & (d < D)[None, :]
    of_query = ((example * T + query)[:, None] * N + head) * D + d[None, :]
    q = _tile(q_ptr, example, q_batch, query, q_frame, head, query < T, D, BLOCK_D)
    grad = tl.load(grad_ptr + of_query, mask=wanted, other=0.0)
    out = tl.load(out_ptr + of_query, mask=wanted, other=0.0)
    norm = tl.load(norm_ptr + of_head + query, mask=query < T, other=0.0)
    dot = tl.sum(grad.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(dot_ptr + of_head + query, dot, mask=query < T)
    total = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, BLOCK + REACH + 2 * (CHUNK - 1), BLOCK):
        key = begin - REACH - (CHUNK - 1) + start + tl.arange(0, BLOCK)
        there = (key >= 0) & (key < T)
        k = _tile(k_ptr, example, k_batch, key, k_frame, head, there, D, BLOCK_D)
        v = _tile(v_ptr, example, v_batch, key, v_frame, head, there, D, BLOCK_D)
        scores, heard, at = _scores(q, k, query, key, bias_ptr + of_head * L, end, T, L, scale, REACH, CHUNK)
        weights = tl.where(heard, tl.exp(scores - norm[:, None]), 0.0)
        of_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        of_scores = weights * (of_weights - dot[:, None]) * scale
        tl.store(of_bias_ptr + of_head * L + at, of_scores.to(of_bias_ptr.dtype.element_ty), mask=heard)
        total += tl.dot(of_scores.to(k.dtype), k, input_precision="ieee")
    tl.store(of_q_ptr + of_query, total.to(of_q_ptr.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _keys_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    bias_ptr,
    lens_ptr,
    norm_ptr,
    dot_ptr,
    of_k_ptr,
    of_v_ptr,
    q_batch,
    q_frame,
    k_batch,
    k_frame,
    v_batch,
    v_frame,
    T,
    L,
    scale,
    N: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REACH: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    begin, head, example = tl.program_id(0) * BLOCK, tl.program_id(1), tl.program_id(2).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    key = begin + tl.arange(0, BLOCK)
    end = tl.minimum(tl.load(lens_ptr + example), T)
    of_head = (head * tl.num_programs(2) + example) * T
    there = key < T
    k = _tile(k_ptr, example, k_batch, key, k_frame, head, there, D, BLOCK_D)
    v = _tile(v_ptr, example, v_batch, key, v_frame, head, there, D, BLOCK_D)
    of_k = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    of_v = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, BLOCK + REACH + 2 * (CHUNK - 1), BLOCK):
        query = begin - (CHUNK - 1) + start + tl.arange(0, BLOCK)
        asks = (query >= 0) & (query < T)
        wanted = asks[:, None] & (d < D)[None, :]
        q = _tile(q_ptr, example, q_batch, query, q_frame, head, asks, D, BLOCK_D)
        grad = tl.load(grad_ptr + ((example * T + query)[:, None] * N + head) * D + d[None, :], mask=wanted, other=0.0)
        norm = tl.load(norm_ptr + of_head + query, mask=asks, other=0.0)
        dot = tl.load(dot_ptr + of_head + query, mask=asks, other=0.0)
        query = tl.where(asks, query, T)  # none is heard by what isn't there
        scores, heard, _ = _scores(q, k, query, key, bias_ptr + of_head * L, end, T, L, scale, REACH, CHUNK)
        weights = tl.where(heard, tl.exp(scores - norm[:, None]), 0.0)
        of_weights = tl.dot(grad, tl.trans(v), input_precision="ieee")
        of_scores = weights * (of_weights - dot[:, None]) * scale
        of_v += tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision="ieee")
        of_k += tl.dot(tl.trans(of_scores.to(q.dtype)), q, input_precision="ieee")
    to = ((example * T + key)[:, None] * N + head) * D + d[None, :]
    tl.store(of_k_ptr + to, of_k.to(of_k_ptr.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])
    tl.store(of_v_ptr + to, of_v.to(of_v_ptr.dtype.element_ty), mask=there[:, None] & (d < D)[None, :])


def _by_frame(x_BTND: Tensor) -> Tensor:
    """The same with the numbers of a frame side by side; frames may lie apart."""
    return x_BTND if x_BTND.stride()[2:] == (x_BTND.shape[3], 1) else x_BTND.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _sizes(q_BTND: Tensor, reach: int, chunk: int) -> tuple[tuple[int, int, int], dict[str, Any]]:
    B, T, N, D = q_BTND.shape
    block_d = max(16, int(triton.next_power_of_2(D)))
    sizes = {"N": N, "D": D, "BLOCK_D": block_d, "REACH": reach, "CHUNK": chunk, "BLOCK": BLOCK}
    return (triton.cdiv(T, BLOCK), N, B), sizes


@torch.library.custom_op("s2s_model::attend_locally", mutates_args=(), device_types="cuda")
def attend_locally_cuda(
    q_BTND: Tensor, k_BTND: Tensor, v_BTND: Tensor, bias_NFL: Tensor, lens_B: Tensor, reach: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """What each frame hears [B, T, N, D], and the logarithms of the sums over its scores [N, B * T] in float32.

    Args:
        q_BTND: queries; keys and values likewise.
        bias_NFL: what is added to the scores before they are scaled by D ** -0.5, for frame b * T + t [N, B * T, L]:
            entry l is for the key `reach + chunk - 1 - l` frames before.
        lens_B: frames of each recording.
        reach: frames before its own chunk that a frame hears.
        chunk: frames of a chunk, which all hear each other.
    """
    q_BTND, k_BTND, v_BTND, bias_NFL = _by_frame(q_BTND), _by_frame(k_BTND), _by_frame(v_BTND), bias_NFL.contiguous()
    B, T, N, D = q_BTND.shape
    out_BTND = q_BTND.new_empty(B, T, N, D)
    norm_NF = q_BTND.new_empty(N, B * T, dtype=torch.float32)
    grid, sizes = _sizes(q_BTND, reach, chunk)
    kernel: Any = _attend_kernel
    with torch.cuda.device_of(q_BTND):
        kernel[grid](
            q_BTND, k_BTND, v_BTND, bias_NFL, lens_B, out_BTND, norm_NF, *_strides(q_BTND, k_BTND, v_BTND),
            T, bias_NFL.shape[2], D**-0.5, **sizes,
        )  # fmt: skip
    return out_BTND, norm_NF


@torch.library.custom_op("s2s_model::attend_locally_gradients", mutates_args=(), device_types="cuda")
def _gradients(
    grad_BTND: Tensor,
    out_BTND: Tensor,
    norm_NF: Tensor,
    q_BTND: Tensor,
    k_BTND: Tensor,
    v_BTND: Tensor,
    bias_NFL: Tensor,
    lens_B: Tensor,
    reach: int,
    chunk: int,
) -> list[Tensor]:
    q_BTND, k_BTND, v_BTND, bias_NFL = _by_frame(q_BTND), _by_frame(k_BTND), _by_frame(v_BTND), bias_NFL.contiguous()
    grad_BTND = grad_BTND.contiguous()
    of_q, of_k, of_v = (torch.empty_like(grad_BTND) for _ in range(3))
    of_bias = torch.zeros_like(bias_NFL)  # what lies before a recording or behind it is never written
    dot_NF = torch.empty_like(norm_NF)
    grid, sizes = _sizes(q_BTND, reach, chunk)
    last = (*_strides(q_BTND, k_BTND, v_BTND), q_BTND.shape[1], bias_NFL.shape[2], q_BTND.shape[3] ** -0.5)
    with torch.cuda.device_of(q_BTND):
        kernel: Any = _queries_kernel
        kernel[grid](
            grad_BTND, out_BTND, q_BTND, k_BTND, v_BTND, bias_NFL, lens_B, norm_NF, of_q, of_bias, dot_NF, *last,
            **sizes,
        )  # fmt: skip
        kernel = _keys_kernel
        kernel[grid](
            grad_BTND, q_BTND, k_BTND, v_BTND, bias_NFL, lens_B, norm_NF, dot_NF, of_k, of_v, *last, **sizes
        )  # fmt: skip
    return [of_q, of_k, of_v, of_bias]


@attend_locally_cuda.register_fake
def _(
    q_BTND: Tensor, k_BTND: Tensor, v_BTND: Tensor, bias_NFL: Tensor, lens_B: Tensor, reach: int, chunk: int
) -> tuple[Tensor, Tensor]:
    return q_BTND.new_empty(q_BTND.shape), bias_NFL.new_empty(bias_NFL.shape[:2], dtype=torch.float32)


@_gradients.register_fake
def _(
    grad_BTND: Tensor, out_BTND: Tensor, norm_NF: Tensor, q_BTND: Tensor, k_BTND: Tensor, v_BTND: Tensor,
    bias_NFL: Tensor, lens_B: Tensor, reach: int, chunk: int,
) -> list[Tensor]:  # fmt: skip
    return [*(q_BTND.new_empty(q_BTND.shape) for _ in range(3)), bias_NFL.new_empty(bias_NFL.shape)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.reach, ctx.chunk = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad_BTND: Tensor, of_norm: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = _gradients(grad_BTND, *ctx.saved_tensors, ctx.reach, ctx.chunk)
    return (*gradients, None, None, None)


attend_locally_cuda.register_autograd(_backward, setup_context=_keep)
