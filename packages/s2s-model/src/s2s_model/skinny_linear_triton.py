"""Products of a few rows with several weights in one launch of a GPU's kernel, as fast as the weights can be read.

A program computes some outputs of all rows. Its warps each take pieces of the input's width, and their sums are added
at the end: more warps read, and none repeats what another does.

Shapes: `R` rows, `K` the input's width, `N` a weight's outputs.
"""

from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from s2s_model.skinny_linear import ALIGNMENT, MAX_ROWS, MAX_WEIGHTS


class Tile(NamedTuple):
    """What a program reads at a time, and how far ahead."""

    block_n: int  # outputs
    block_k: int  # inputs of a warp
    num_warps: int
    num_stages: int


# Few outputs are a program or two for each processor, which then has to read far ahead itself: 48 KB of weights.
# Many are several programs; larger tiles read the rows less often.
FEW_OUTPUTS = 4096
# Measured on an H200 at 8 and 32 rows; 98 KiB of shared memory at most, which GPUs of 100 have too.
FEW, FEW_OF_MANY_ROWS, MANY = Tile(16, 128, 4, 4), Tile(16, 64, 4, 4), Tile(32, 64, 2, 5)


def tile_for(num_outputs: int, block_r: int) -> Tile:
    """What serves so many outputs of all weights, and rows that are computed."""
    if num_outputs > FEW_OUTPUTS:
        return MANY
    return FEW if block_r <= 16 else FEW_OF_MANY_ROWS


# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["R", *(f"{name}{i}" for name in ("n", "biased") for i in range(MAX_WEIGHTS))]


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _linears_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    w0_ptr,
    w1_ptr,
    w2_ptr,
    w3_ptr,
    b0_ptr,
    b1_ptr,
    b2_ptr,
    b3_ptr,
    out0_ptr,
    out1_ptr,
    out2_ptr,
    out3_ptr,
    n0,
    n1,
    n2,
    n3,
    biased0,
    biased1,
    biased2,
    biased3,
    R,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SPLIT: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    block, w_ptr, b_ptr, out_ptr, N, biased = tl.program_id(0), w0_ptr, b0_ptr, out0_ptr, n0, biased0
    num_blocks = tl.cdiv(n0, BLOCK_N)
    if block >= num_blocks:
        block, w_ptr, b_ptr, out_ptr, N, biased = block - num_blocks, w1_ptr, b1_ptr, out1_ptr, n1, biased1
        num_blocks = tl.cdiv(n1, BLOCK_N)
        if block >= num_blocks:
            block, w_ptr, b_ptr, out_ptr, N, biased = block - num_blocks, w2_ptr, b2_ptr, out2_ptr, n2, biased2
            num_blocks = tl.cdiv(n2, BLOCK_N)
            if block >= num_blocks:
                block, w_ptr, b_ptr, out_ptr, N, biased = block - num_blocks, w3_ptr, b3_ptr, out3_ptr, n3, biased3
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    k_SK = tl.arange(0, SPLIT)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    # An output that isn't there reads the last one's weights: no mask, and nothing is stored.
    w_ptrs = w_ptr + tl.minimum(n, N - 1).to(tl.int64)[None, :, None] * K + k_SK[:, None, :]
    x_ptrs = x_ptr + r[None, None, :] * K + k_SK[:, :, None]
    there = (r < R)[None, None, :]
    total = tl.zeros([SPLIT, BLOCK_N, BLOCK_R], tl.float32)
    for begin in range(0, K, SPLIT * BLOCK_K):  # weights are read once, the rows by every program
        if EVEN_K:
            w = tl.load(w_ptrs + begin, eviction_policy="evict_first")
            x = tl.load(x_ptrs + begin, mask=there, other=0.0)
        else:
            within = k_SK < K - begin
            w = tl.load(w_ptrs + begin, mask=within[:, None, :], other=0.0, eviction_policy="evict_first")
            x = tl.load(x_ptrs + begin, mask=there & within[:, :, None], other=0.0)
        total = tl.dot(w, x, total, input_precision="ieee")
    bias = tl.load(b_ptr + n, mask=n < biased, other=0.0).to(tl.float32)
    out = tl.sum(total, axis=0) + bias[:, None]
    at = r[None, :] * N + n[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=(n < N)[:, None] & (r < R)[None, :])


def linears_cuda(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> list[Tensor]:
    """`skinny_linears` on a GPU; its arguments."""
    K = x.shape[-1]
    R = x.numel() // K
    assert 1 <= R <= MAX_ROWS, f"{R} rows"
    assert K % ALIGNMENT == 0, f"rows of {K}"
    assert 1 <= len(weights) == len(biases) <= MAX_WEIGHTS, f"{len(weights)} weights and {len(biases)} biases"
    assert all(weight.is_contiguous() and weight.shape[1] == K and weight.dtype == x.dtype for weight in weights)
    sizes = [weight.shape[0] for weight in weights]
    outs = [x.new_empty(*x.shape[:-1], N) for N in sizes]
    block_r = max(8, triton.next_power_of_2(R))
    block_n, block_k, num_warps, num_stages = tile_for(sum(sizes), block_r)
    kernel: Any = _linears_kernel
    with torch.cuda.device_of(x):
        kernel[(sum(triton.cdiv(N, block_n) for N in sizes),)](
            x.contiguous(),
            *_filled(weights, x),
            *_filled([x if bias is None else bias.contiguous() for bias in biases], x),  # x: none is read
            *_filled(outs, x),
            *_filled(sizes, 0),
            *_filled([0 if bias is None else bias.shape[0] for bias in biases], 0),
            R,
            K=K,
            BLOCK_N=block_n,
            BLOCK_K=block_k,
            BLOCK_R=block_r,
            SPLIT=num_warps,
            EVEN_K=K % (num_warps * block_k) == 0,
            num_warps=num_warps,
            num_stages=num_stages,
        )
    return outs


def _filled(values: list[Any], filler: Any) -> list[Any]:
    """With so many fillers behind that there is one for each weight of the kernel."""
    return values + [filler] * (MAX_WEIGHTS - len(values))
