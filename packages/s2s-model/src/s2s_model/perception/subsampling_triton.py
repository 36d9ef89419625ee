"""`convolve_twice` and `convolve_depthwise` on a GPU, with their gradients.

Within a tile of positions and channels, the first convolution is a small matrix product for each tap of the second one:
[positions, 16] @ [16, channels], where 16 are nine features, a one for the bias, and zeros. Sums are taken in float32.
Gradients of weights are summed by each program for itself and then over programs, always in the same order.

Shapes: see subsampling.py; `R` rows of partial sums.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from torch.nn.functional import pad

from s2s_model.perception.depthwise_triton import PROGRAMS, from_table, grid_of, table_of_taps
from s2s_model.perception.subsampling import KERNEL, STRIDE, _halved

ROWS = 16  # of a table of nine taps and a bias, as many as a matrix product needs
POSITIONS, CHANNELS = 64, 32  # of a tile of `convolve_twice`
POSITIONS_DEPTHWISE, CHANNELS_DEPTHWISE = 32, 64
PADDED = STRIDE * STRIDE  # features' rows and columns that a step of the output moves on by

# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["num_positions", "num_tiles", "T_in", "F_in", "T_out", "F_out", "T_padded", "F_padded"]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _place(position, T, F):  # type: ignore[no-untyped-def]
    """Example, frame and feature of positions in [B, T, F]."""
    return position // F // T, position // F % T, position % F


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _weight(taps_ptr, tap, channel, C):  # type: ignore[no-untyped-def]
    """A row of a table of taps, in float32."""
    return tl.load(taps_ptr + tap * C + channel, mask=channel < C, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _first(  # type: ignore[no-untyped-def]
    x_ptr, taps_1, example, t, f, there, end, F_in, T_padded, F_padded, i: tl.constexpr, j: tl.constexpr,
    LEFT: tl.constexpr,
):  # fmt: skip
    """For tap (i, j) of the second convolution: features and a one [P, 16], the first one's values before the ReLU
    [P, C], and where they are there [P]."""
    tap = tl.arange(0, 16)
    at = (example * T_padded + 4 * t) * F_padded + 4 * f
    offset = (2 * i + tap // 3) * F_padded + 2 * j + tap % 3
    x = tl.load(x_ptr + at[:, None] + offset[None, :], mask=there[:, None] & (tap < 9)[None, :], other=0.0)
    x = tl.where((tap == 9)[None, :], 1.0, x).to(taps_1.dtype)
    row, column = 2 * t + i - LEFT, 2 * f + j - LEFT
    inside = (row >= 0) & (row < end) & (column >= 0) & (column < F_in)
    return x, tl.dot(x, taps_1, input_precision="ieee"), inside


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _heard(  # type: ignore[no-untyped-def]
    x_ptr, example, t, f, there, end, channel, T_in, F_in, C, i: tl.constexpr, j: tl.constexpr, LEFT: tl.constexpr
):
    """What tap (i, j) hears behind the ReLU [P, C], in float32."""
    row, column = 2 * t + i - LEFT, 2 * f + j - LEFT
    inside = there & (row >= 0) & (row < end) & (column >= 0) & (column < F_in)
    at = ((example * T_in + row) * F_in + column) * C
    x = tl.load(x_ptr + at[:, None] + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0.0)
    return tl.maximum(x.to(tl.float32), 0.0)


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _twice_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    lens_ptr,
    taps_1_ptr,
    taps_2_ptr,
    out_ptr,
    num_positions,
    T_in,
    F_in,
    T_out,
    F_out,
    T_padded,
    F_padded,
    C,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.arange(0, 16)
    there = position < num_positions
    example, t, f = _place(position, T_out, F_out)
    end = tl.minimum(tl.load(lens_ptr + example, mask=there, other=0), T_in)
    taps_1 = tl.load(taps_1_ptr + tap[:, None] * C + channel[None, :], mask=(channel < C)[None, :], other=0.0)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    total += _weight(taps_2_ptr, 9, channel, C)[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            _, first, inside = _first(x_ptr, taps_1, example, t, f, there, end, F_in, T_padded, F_padded, i, j, LEFT)
            first = tl.where(inside[:, None], tl.maximum(first, 0.0), 0.0)
            weight = _weight(taps_2_ptr, 3 * i + j, channel, C)
            total += first * weight[None, :]
    to = out_ptr + position[:, None] * C + channel[None, :]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & (channel < C)[None, :])


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _twice_weights_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    lens_ptr,
    taps_1_ptr,
    taps_2_ptr,
    sums_ptr,
    num_positions,
    num_tiles,
    T_in,
    F_in,
    T_out,
    F_out,
    T_padded,
    F_padded,
    C,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.arange(0, 16)
    in_channels = channel < C
    taps_1 = tl.load(taps_1_ptr + tap[:, None] * C + channel[None, :], mask=in_channels[None, :], other=0.0)
    sums_1 = tl.zeros([16, BLOCK_C], tl.float32)
    sums_2 = tl.zeros([16, BLOCK_C], tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        position = tile * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
        there = position < num_positions
        example, t, f = _place(position, T_out, F_out)
        end = tl.minimum(tl.load(lens_ptr + example, mask=there, other=0), T_in)
        wanted = there[:, None] & in_channels[None, :]
        grad = tl.load(grad_ptr + position[:, None] * C + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
        sums_2 += tl.where((tap == 9)[:, None], tl.sum(grad, axis=0)[None, :], 0.0)
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                x, first, inside = _first(
                    x_ptr, taps_1, example, t, f, there, end, F_in, T_padded, F_padded, i, j, LEFT
                )
                active = inside[:, None] & (first > 0)
                summed = tl.sum(tl.where(active, first, 0.0) * grad, axis=0)
                sums_2 += tl.where((tap == 3 * i + j)[:, None], summed[None, :], 0.0)
                weight = _weight(taps_2_ptr, 3 * i + j, channel, C)
                behind = tl.where(active, grad * weight[None, :], 0.0).to(taps_1.dtype)
                sums_1 += tl.dot(tl.trans(x), behind, input_precision="ieee")
    to = sums_ptr + (tl.program_id(0) * 32 + tap)[:, None] * C + channel[None, :]
    tl.store(to, sums_1, mask=in_channels[None, :])
    tl.store(to + 16 * C, sums_2, mask=in_channels[None, :])


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _depthwise_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    lens_ptr,
    taps_ptr,
    out_ptr,
    num_positions,
    T_in,
    F_in,
    T_out,
    F_out,
    C,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = position < num_positions
    in_channels = channel < C
    example, t, f = _place(position, T_out, F_out)
    end = tl.minimum(tl.load(lens_ptr + example, mask=there, other=0), T_in)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    total += _weight(taps_ptr, 9, channel, C)[None, :]
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            x = _heard(x_ptr, example, t, f, there, end, channel, T_in, F_in, C, i, j, LEFT)
            weight = _weight(taps_ptr, 3 * i + j, channel, C)
            total += x * weight[None, :]
    to = out_ptr + position[:, None] * C + channel[None, :]
    tl.store(to, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & in_channels[None, :])


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _depthwise_input_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    lens_ptr,
    taps_ptr,
    out_ptr,
    num_positions,
    T_in,
    F_in,
    T_out,
    F_out,
    C,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)  # of the input
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there = position < num_positions
    in_channels = channel < C
    example, t, f = _place(position, T_in, F_in)
    inside = there & (t < tl.load(lens_ptr + example, mask=there, other=0))
    at = position[:, None] * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=inside[:, None] & in_channels[None, :], other=0.0)
    total = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            row, column = t + LEFT - i, f + LEFT - j  # twice the output's that this tap belongs to
            belongs = inside & (row >= 0) & (column >= 0) & (row % 2 == 0) & (column % 2 == 0)
            belongs &= (row // 2 < T_out) & (column // 2 < F_out)
            of = ((example * T_out + row // 2) * F_out + column // 2) * C
            grad = tl.load(
                grad_ptr + of[:, None] + channel[None, :], mask=belongs[:, None] & in_channels[None, :], other=0.0
            ).to(tl.float32)
            weight = _weight(taps_ptr, 3 * i + j, channel, C)
            total += grad * weight[None, :]
    total = tl.where(x > 0, total, 0.0)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=there[:, None] & in_channels[None, :])


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _depthwise_weights_kernel(  # type: ignore[no-untyped-def]
    grad_ptr,
    x_ptr,
    lens_ptr,
    sums_ptr,
    num_positions,
    num_tiles,
    T_in,
    F_in,
    T_out,
    F_out,
    C,
    LEFT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.arange(0, 16)
    in_channels = channel < C
    sums = tl.zeros([16, BLOCK_C], tl.float32)
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        position = tile * BLOCK_P + tl.arange(0, BLOCK_P).to(tl.int64)
        there = position < num_positions
        example, t, f = _place(position, T_out, F_out)
        end = tl.minimum(tl.load(lens_ptr + example, mask=there, other=0), T_in)
        wanted = there[:, None] & in_channels[None, :]
        grad = tl.load(grad_ptr + position[:, None] * C + channel[None, :], mask=wanted, other=0.0).to(tl.float32)
        sums += tl.where((tap == 9)[:, None], tl.sum(grad, axis=0)[None, :], 0.0)
        for i in tl.static_range(3):
            for j in tl.static_range(3):
                x = _heard(x_ptr, example, t, f, there, end, channel, T_in, F_in, C, i, j, LEFT)
                summed = tl.sum(x * grad, axis=0)
                sums += tl.where((tap == 3 * i + j)[:, None], summed[None, :], 0.0)
    to = sums_ptr + (tl.program_id(0) * 16 + tap)[:, None] * C + channel[None, :]
    tl.store(to, sums, mask=in_channels[None, :])


def _sizes(num_frames: int, num_features: int, padding: int) -> tuple[int, int]:
    return _halved(num_frames, padding), _halved(num_features, padding)


def _spread(x_BTF: Tensor, left: int, right: int) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
    """Features padded for both convolutions, and the sizes of what both make."""
    middle = _sizes(x_BTF.shape[1], x_BTF.shape[2], left + right)
    end = _sizes(*middle, left + right)
    before = KERNEL * left
    behind = [PADDED * size + KERNEL - before - have for size, have in zip(end, x_BTF.shape[1:], strict=True)]
    return pad(x_BTF, (before, behind[1], before, behind[0])).contiguous(), middle, end


@torch.library.custom_op("s2s_model::convolve_twice", mutates_args=(), device_types="cuda")
def convolve_twice_cuda(
    x_BTF: Tensor,
    lens_B: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    left: int,
    right: int,
) -> Tensor:
    """See `subsampling.convolve_twice`."""
    padded, middle, end = _spread(x_BTF, left, right)
    B, C = len(x_BTF), len(bias_1)
    out_BTFC = x_BTF.new_empty(B, *end, C)
    num_positions = B * end[0] * end[1]
    _, grid = grid_of(num_positions, C, POSITIONS, CHANNELS)
    kernel: Any = _twice_kernel
    with torch.cuda.device_of(x_BTF):
        kernel[grid](
            padded, lens_B, table_of_taps(weight_1, bias_1), table_of_taps(weight_2, bias_2), out_BTFC, num_positions,
            *middle, *end, *padded.shape[1:], C, LEFT=left, BLOCK_P=POSITIONS, BLOCK_C=CHANNELS,
        )  # fmt: skip
    return out_BTFC


@torch.library.custom_op("s2s_model::convolve_twice_gradients", mutates_args=(), device_types="cuda")
def _twice_gradients(
    grad_BTFC: Tensor,
    x_BTF: Tensor,
    lens_B: Tensor,
    weight_1: Tensor,
    bias_1: Tensor,
    weight_2: Tensor,
    bias_2: Tensor,
    left: int,
    right: int,
) -> list[Tensor]:
    padded, middle, end = _spread(x_BTF, left, right)
    C = len(bias_1)
    num_positions = len(x_BTF) * end[0] * end[1]
    num_tiles, grid = grid_of(num_positions, C, POSITIONS, CHANNELS, PROGRAMS)
    sums = grad_BTFC.new_empty(grid[0], 2 * ROWS, C, dtype=torch.float32)
    kernel: Any = _twice_weights_kernel
    with torch.cuda.device_of(x_BTF):
        kernel[grid](
            grad_BTFC.contiguous(), padded, lens_B, table_of_taps(weight_1, bias_1), table_of_taps(weight_2, bias_2),
            sums, num_positions, num_tiles, *middle, *end, *padded.shape[1:], C,
            LEFT=left, BLOCK_P=POSITIONS, BLOCK_C=CHANNELS,
        )  # fmt: skip
    summed = sums.sum(0)
    return [*from_table(summed[:ROWS], weight_1), *from_table(summed[ROWS:], weight_2)]


@torch.library.custom_op("s2s_model::convolve_depthwise", mutates_args=(), device_types="cuda")
def convolve_depthwise_cuda(
    x_BTFC: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int
) -> Tensor:
    """See `subsampling.convolve_depthwise`."""
    x_BTFC = x_BTFC.contiguous()
    B, T_in, F_in, C = x_BTFC.shape
    end = _sizes(T_in, F_in, left + right)
    out_BTFC = x_BTFC.new_empty(B, *end, C)
    num_positions = B * end[0] * end[1]
    _, grid = grid_of(num_positions, C, POSITIONS_DEPTHWISE, CHANNELS_DEPTHWISE)
    kernel: Any = _depthwise_kernel
    with torch.cuda.device_of(x_BTFC):
        kernel[grid](
            x_BTFC, lens_B, table_of_taps(weight, bias), out_BTFC, num_positions, T_in, F_in, *end, C,
            LEFT=left, BLOCK_P=POSITIONS_DEPTHWISE, BLOCK_C=CHANNELS_DEPTHWISE,
        )  # fmt: skip
    return out_BTFC


@torch.library.custom_op("s2s_model::convolve_depthwise_gradients", mutates_args=(), device_types="cuda")
def _depthwise_gradients(
    grad_BTFC: Tensor, x_BTFC: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int
) -> list[Tensor]:
    grad_BTFC, x_BTFC = grad_BTFC.contiguous(), x_BTFC.contiguous()
    B, T_in, F_in, C = x_BTFC.shape
    T_out, F_out = grad_BTFC.shape[1:3]
    taps = table_of_taps(weight, bias)
    behind = torch.empty_like(x_BTFC)
    sizes = (T_in, F_in, T_out, F_out)
    with torch.cuda.device_of(x_BTFC):
        num_positions = B * T_in * F_in
        _, grid = grid_of(num_positions, C, POSITIONS_DEPTHWISE, CHANNELS_DEPTHWISE)
        kernel: Any = _depthwise_input_kernel
        kernel[grid](
            grad_BTFC, x_BTFC, lens_B, taps, behind, num_positions, *sizes, C,
            LEFT=left, BLOCK_P=POSITIONS_DEPTHWISE, BLOCK_C=CHANNELS_DEPTHWISE,
        )  # fmt: skip
        num_positions = B * T_out * F_out
        num_tiles, grid = grid_of(num_positions, C, POSITIONS_DEPTHWISE, CHANNELS_DEPTHWISE, PROGRAMS)
        sums = grad_BTFC.new_empty(grid[0], ROWS, C, dtype=torch.float32)
        kernel = _depthwise_weights_kernel
        kernel[grid](
            grad_BTFC, x_BTFC, lens_B, sums, num_positions, num_tiles, *sizes, C,
            LEFT=left, BLOCK_P=POSITIONS_DEPTHWISE, BLOCK_C=CHANNELS_DEPTHWISE,
        )  # fmt: skip
    return [behind, *from_table(sums.sum(0), weight)]


# --- what torch.compile and autograd need to know of them --------------------------------------------------------


@convolve_twice_cuda.register_fake
def _(
    x_BTF: Tensor, lens_B: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor,
    left: int, right: int,
) -> Tensor:  # fmt: skip
    end = _sizes(*_sizes(x_BTF.shape[1], x_BTF.shape[2], left + right), left + right)
    return x_BTF.new_empty(x_BTF.shape[0], *end, bias_1.shape[0])


@_twice_gradients.register_fake
def _(
    grad_BTFC: Tensor, x_BTF: Tensor, lens_B: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor,
    bias_2: Tensor, left: int, right: int,
) -> list[Tensor]:  # fmt: skip
    return [each.new_empty(each.shape) for each in (weight_1, bias_1, weight_2, bias_2)]


@convolve_depthwise_cuda.register_fake
def _(x_BTFC: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int) -> Tensor:
    end = _sizes(x_BTFC.shape[1], x_BTFC.shape[2], left + right)
    return x_BTFC.new_empty(x_BTFC.shape[0], *end, x_BTFC.shape[3])


@_depthwise_gradients.register_fake
def _(
    grad_BTFC: Tensor, x_BTFC: Tensor, lens_B: Tensor, weight: Tensor, bias: Tensor, left: int, right: int
) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (x_BTFC, weight, bias)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.left, ctx.right = inputs
    ctx.save_for_backward(*tensors)


def _twice_backward(ctx: Any, grad_BTFC: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _twice_gradients(grad_BTFC, *ctx.saved_tensors, ctx.left, ctx.right)
    return (None, None, *gradients, None, None)


def _depthwise_backward(ctx: Any, grad_BTFC: Tensor) -> tuple[Tensor | None, ...]:
    behind, weight, bias = _depthwise_gradients(grad_BTFC, *ctx.saved_tensors, ctx.left, ctx.right)
    return (behind, None, weight, bias, None, None)


convolve_twice_cuda.register_autograd(_twice_backward, setup_context=_keep)
convolve_depthwise_cuda.register_autograd(_depthwise_backward, setup_context=_keep)
