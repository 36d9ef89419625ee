"""A Conformer's depthwise convolution over time on a GPU, channels last, with its gradients.

Torch's kernels need channels first, and read each number once per tap. Sums are taken in float32; gradients of weights
are summed by each program for itself and then over programs, always in the same order.

Shapes: `B` batch, `T` frames, `C` channels, `K` taps, `R` rows of a table of taps: K, one for the bias, and zeros up to
a power of two.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from torch.nn.functional import pad

BLOCK_P, BLOCK_C = 32, 64  # positions and channels that a program works on
PROGRAMS = 264  # that sum gradients of weights, for each block of channels

# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["num_positions", "num_tiles", "T"]


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _convolve_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    taps_ptr,
    out_ptr,
    num_positions,
    T,
    C,
    LEFT: tl.constexpr,
    K: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there, in_channels = position < num_positions, channel < C
    t = position % T
    at = position[:, None] * C + channel[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    total += tl.load(taps_ptr + K * C + channel, mask=in_channels, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(K):
        inside = there & (t + (k - LEFT) >= 0) & (t + (k - LEFT) < T)
        x = tl.load(x_ptr + at + (k - LEFT) * C, mask=inside[:, None] & in_channels[None, :], other=0.0)
        tap = tl.load(taps_ptr + k * C + channel, mask=in_channels, other=0.0)
        total += x.to(tl.float32) * tap.to(tl.float32)[None, :]
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & in_channels[None, :])


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _weights_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    sums_ptr,
    num_positions,
    num_tiles,
    T,
    C,
    LEFT: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, R)
    in_channels = channel < C
    sums = tl.zeros([R, BLOCK_C], tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        position = tile * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
        there = position < num_positions
        t = position % T
        at = position[:, None] * C + channel[None, :]
        wanted = there[:, None] & in_channels[None, :]
        grad = tl.load(grad_ptr + at, mask=wanted, other=0.0).to(tl.float32)
        sums += tl.where((row == K)[:, None], tl.sum(grad, axis=0)[None, :], 0.0)
        for k in tl.static_range(K):
            inside = there & (t + (k - LEFT) >= 0) & (t + (k - LEFT) < T)
            x = tl.load(x_ptr + at + (k - LEFT) * C, mask=inside[:, None] & in_channels[None, :], other=0.0)
            summed = tl.sum(x.to(tl.float32) * grad, axis=0)
            sums += tl.where((row == k)[:, None], summed[None, :], 0.0)
    to = sums_ptr + (tl.program_id(0) * R + row)[:, None] * C + channel[None, :]
    tl.store(to, sums, mask=in_channels[None, :])


def table_of_taps(weight: Tensor, bias: Tensor | None) -> Tensor:
    """[R, C] of a weight [C, 1, ..] and a bias [C]."""
    taps_KC = weight.flatten(1).t()
    last = taps_KC.new_zeros(1, taps_KC.shape[1]) if bias is None else bias[None]
    return pad(torch.cat([taps_KC, last]), (0, 0, 0, rows_of_taps(len(taps_KC)) - len(taps_KC) - 1)).contiguous()


def rows_of_taps(num_taps: int) -> int:
    """R."""
    return max(16, int(triton.next_power_of_2(num_taps + 1)))


def from_table(sums_RC: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a weight and a bias, in memory of their own."""
    num_taps = like[0].numel()
    weight = torch.empty_like(like, memory_format=torch.contiguous_format)
    return weight.copy_(sums_RC[:num_taps].t().reshape(like.shape)), sums_RC[num_taps].to(like.dtype, copy=True)


def grid_of(num_positions: int, num_channels: int, block_p: int, block_c: int, at_most: int | None = None) -> Any:
    """How many tiles of positions there are, and the programs that work on them and on the channels."""
    num_tiles = triton.cdiv(num_positions, block_p)
    return num_tiles, (min(num_tiles, at_most or num_tiles), triton.cdiv(num_channels, block_c))


def _launch(x_BTC: Tensor, taps_RC: Tensor, num_taps: int, left: int) -> Tensor:
    B, T, C = x_BTC.shape
    out_BTC = torch.empty_like(x_BTC)
    _, grid = grid_of(B * T, C, BLOCK_P, BLOCK_C)
    kernel: Any = _convolve_kernel
    with torch.cuda.device_of(x_BTC):
        kernel[grid](
            x_BTC, taps_RC, out_BTC, B * T, T, C, LEFT=left, K=num_taps, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C
        )  # fmt: skip
    return out_BTC


@torch.library.custom_op("s2s_model::convolve_over_time", mutates_args=(), device_types="cuda")
def convolve_over_time(x_BTC: Tensor, weight: Tensor, bias: Tensor, left: int) -> Tensor:
    """Convolve each channel of its own: [B, T, C].

    Args:
        x_BTC: zeros are put before and behind it, so that its length stays.
        weight: [C, 1, K]; the bias is [C].
        left: zeros before; K - 1 - `left` behind.
    """
    return _launch(x_BTC.contiguous(), table_of_taps(weight, bias), weight.shape[2], left)


@torch.library.custom_op("s2s_model::convolve_over_time_gradients", mutates_args=(), device_types="cuda")
def _gradients(grad_BTC: Tensor, x_BTC: Tensor, weight: Tensor, left: int) -> list[Tensor]:
    grad_BTC, x_BTC = grad_BTC.contiguous(), x_BTC.contiguous()
    (B, T, C), K = x_BTC.shape, weight.shape[2]
    behind = _launch(grad_BTC, table_of_taps(weight.flip(2), None), K, K - 1 - left)
    num_tiles, grid = grid_of(B * T, C, BLOCK_P, BLOCK_C, PROGRAMS)
    rows = rows_of_taps(K)
    sums = grad_BTC.new_empty(grid[0], rows, C, dtype=torch.float32)
    kernel: Any = _weights_kernel
    with torch.cuda.device_of(x_BTC):
        kernel[grid](
            grad_BTC, x_BTC, sums, B * T, num_tiles, T, C, LEFT=left, K=K, R=rows, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C
        )
    return [behind, *from_table(sums.sum(0), weight)]


@convolve_over_time.register_fake
def _(x_BTC: Tensor, weight: Tensor, bias: Tensor, left: int) -> Tensor:
    return x_BTC.new_empty(x_BTC.shape)


@_gradients.register_fake
def _(grad_BTC: Tensor, x_BTC: Tensor, weight: Tensor, left: int) -> list[Tensor]:
    return [x_BTC.new_empty(x_BTC.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x_BTC, weight, _, ctx.left = inputs
    ctx.save_for_backward(x_BTC, weight)


def _backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor | None, ...]:
    return (*_gradients(grad_BTC, *ctx.saved_tensors, ctx.left), None)


convolve_over_time.register_autograd(_backward, setup_context=_keep)
