"""`convolve` as one GPU kernel.

cuDNN takes six times as long for a decoder's layers as for an encoder's of the same work: their channels are few and
their taps apart. And between its convolutions bias, activation, mask, residuals and padding are passes over memory.
Here a block of steps stays in registers from the products to the activation, and mirrored steps are read where they
come from.

Shapes: see convolution.py.
"""

from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from s2s_model.codecs.convolution import Call, Made

# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["in_steps", "out_steps", "steps_per_frame", "stride", "dilation", "padding", "taps", "chunks"]
VARYING += ["has_residual", "has_partial", "keep", "activate", "frames_ptr", "end_ptr"]


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _mirrored(place, end):  # type: ignore[no-untyped-def]
    """The step that stands at a place before the first or behind the last."""
    place = tl.where(place < 0, -place, place)
    return tl.where(place >= end, 2 * (end - 1) - place, place)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _outputs(  # type: ignore[no-untyped-def]
    first_row, column, stride, padding, out_channels, columns, TRANSPOSED: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Step and channel of each output, and its place in an example: a base of 64 bits, and what is added to it."""
    row = tl.arange(0, BLOCK_T)
    if TRANSPOSED:  # a column is a channel of one of `stride` steps
        step = ((first_row + row) * stride - padding)[:, None] + (column // out_channels)[None, :]
        channel = column % out_channels
        base = first_row.to(tl.int64) * columns - padding * out_channels
        at = row[:, None] * columns + column[None, :]
    else:
        step = (first_row + row)[:, None]
        channel = column
        base = first_row.to(tl.int64) * out_channels
        at = row[:, None] * out_channels + column[None, :]
    return step, channel, base, at


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _convolve_kernel(  # type: ignore[no-untyped-def]
    input_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    partial_ptr,
    frames_ptr,
    end_ptr,
    kept_ptr,
    active_ptr,
    in_pitch,
    in_steps,
    out_steps,
    steps_per_frame,
    stride,
    dilation,
    padding,
    taps,
    chunks,
    in_channels,
    out_channels,
    columns,
    scale,
    residual_scale,
    slope,
    largest,
    has_residual,
    has_partial,
    keep,
    activate,
    input_size,
    TRANSPOSED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    example = tl.program_id(1).to(tl.int64)
    num_blocks = tl.cdiv(columns, BLOCK_C)
    first_row = tl.program_id(0) // num_blocks * BLOCK_T
    row = first_row + tl.arange(0, BLOCK_T)
    column = tl.program_id(0) % num_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    in_columns = column < columns
    end = (tl.load(end_ptr) * steps_per_frame).to(tl.int32)
    own_end = (tl.load(frames_ptr + example) * steps_per_frame).to(tl.int32)

    first_source = first_row if TRANSPOSED else first_row * stride
    inputs = input_ptr + example * input_size + first_source.to(tl.int64) * in_pitch
    in_end = end * stride
    sums = tl.zeros((BLOCK_T, BLOCK_C), tl.float32)
    for i in range(taps * chunks):
        tap = i // chunks
        channel = (i - tap * chunks) * BLOCK_K + tl.arange(0, BLOCK_K)
        in_channel = channel < in_channels
        if TRANSPOSED:
            source = row - tap
            is_there = (source >= 0) & (source < in_steps)
        else:
            place = row * stride + tap * dilation - padding
            source = _mirrored(place, in_end)
            is_there = (place < in_end + padding) & (source >= 0) & (source < in_steps)
        at = (source - first_source)[:, None] * in_pitch + channel[None, :]
        heard = tl.load(inputs + at, mask=is_there[:, None] & in_channel[None, :], other=0.0)
        at = (tap * in_channels + channel)[:, None] * columns + column[None, :]
        weight = tl.load(weight_ptr + at, mask=in_channel[:, None] & in_columns[None, :], other=0.0)
        sums = tl.dot(heard, weight, sums, input_precision=PRECISION)

    step, out_channel, base, at = _outputs(
        first_row, column, stride, padding, out_channels, columns, TRANSPOSED, BLOCK_T
    )
    base += example * out_steps * out_channels
    bias = tl.load(bias_ptr + out_channel, mask=in_columns, other=0.0)
    inside = (step >= 0) & (step < out_steps) & in_columns[None, :]
    audible = inside & (step < end)
    x = tl.where(step < own_end, sums * scale + bias[None, :], 0.0)
    if has_residual:
        x += residual_scale * tl.load(residual_ptr + base + at, mask=audible, other=0.0).to(tl.float32)
    if has_partial:
        x += tl.load(partial_ptr + base + at, mask=audible, other=0.0).to(tl.float32)
    x = tl.where(step < end, tl.minimum(tl.maximum(x, -largest), largest), 0.0)
    if keep:
        tl.store(kept_ptr + base + at, x.to(kept_ptr.dtype.element_ty), mask=inside)
    if activate:
        x = tl.where(x < 0, x * slope, x)
        tl.store(active_ptr + base + at, x.to(active_ptr.dtype.element_ty), mask=inside)


FILLED = 132  # programs that a large GPU runs side by side


class Blocks(NamedTuple):
    """What a program works on at once: steps, channels in and channels out."""

    steps: int
    channels_in: int
    channels_out: int
    num_warps: int
    num_stages: int


def choose_blocks(num_rows: int, channels_in: int, columns: int, element_size: int) -> Blocks:
    """Blocks for so many steps of all examples together; measured on an H200."""
    is_half = element_size == 2
    channels_out = _block(columns, 128 if is_half else 64)
    steps = min(256, 8192 // channels_out)
    while _num_programs(num_rows, steps, columns, channels_out) < FILLED and (steps > 64 or channels_out > 64):
        steps, channels_out = max(64, steps // 2), min(64, channels_out)
    in_block = max(16, min(64 if is_half else 32, triton.next_power_of_2(channels_in)))
    return Blocks(steps, in_block, channels_out, 4, 3 if channels_out == 128 else 2)


def _num_programs(num_rows: int, steps: int, columns: int, channels_out: int) -> int:
    num: int = triton.cdiv(num_rows, steps) * triton.cdiv(columns, channels_out)
    return num


def _block(num_channels: int, most: int) -> int:
    """A power of 2 from 16 to `most`; the smaller of two where it leaves a seventh less unused."""
    size: int = max(16, min(most, triton.next_power_of_2(num_channels)))
    half = max(16, size // 2)
    whole_size, half_size = (triton.cdiv(num_channels, block) * block for block in (size, half))
    return half if half_size * 7 < whole_size * 6 else size


def convolve_cuda(call: Call) -> Made:
    """`convolve` on a GPU."""
    conv, ending, span, input_BTC, num_steps, residual_BTC, partial_BTC, keep, activate, dtype = call
    B, in_steps, _ = input_BTC.shape
    taps, in_channels, columns = conv.weight_KIO.shape
    out_channels = len(conv.bias_C)
    num_rows = in_steps + triton.cdiv(conv.padding, conv.stride) if conv.transposed else num_steps
    # Each number of `partial_BTC` is read by the program that writes its place.
    free = partial_BTC if partial_BTC is not None and partial_BTC.dtype == dtype else None
    made: list[Tensor | None] = [None, None]
    for i, wanted in enumerate((keep, activate)):
        if wanted:
            made[i] = input_BTC.new_empty(B, num_steps, out_channels, dtype=dtype) if free is None else free
            free = None
    kept_BTC, active_BTC = (input_BTC.new_empty(0) if x_BTC is None else x_BTC for x_BTC in made)
    blocks = choose_blocks(B * num_rows, in_channels, columns, input_BTC.element_size())
    grid = (_num_programs(num_rows, blocks.steps, columns, blocks.channels_out), B)
    if B * num_steps == 0:
        return Made(kept_BTC, active_BTC)
    stand_in = next(x_BTC for x_BTC in made if x_BTC is not None)
    kernel: Any = _convolve_kernel
    cudnn: Any = torch.backends.cudnn
    with torch.cuda.device_of(input_BTC):  # the kernel runs on the current device
        kernel[grid](
            input_BTC,
            conv.weight_KIO,
            conv.bias_C,
            stand_in if residual_BTC is None else residual_BTC,
            stand_in if partial_BTC is None else partial_BTC,
            span.frames_B,
            span.end_1,
            stand_in if made[0] is None else kept_BTC,
            stand_in if made[1] is None else active_BTC,
            input_BTC.stride(1),
            in_steps,
            num_steps,
            ending.steps_per_frame,
            conv.stride,
            conv.dilation,
            conv.padding,
            taps,
            triton.cdiv(in_channels, blocks.channels_in),
            in_channels,
            out_channels,
            columns,
            ending.scale,
            ending.residual_scale,
            ending.slope,
            torch.finfo(dtype).max,
            int(residual_BTC is not None),
            int(partial_BTC is not None),
            int(keep),
            int(activate),
            input_BTC.stride(0),
            TRANSPOSED=conv.transposed,
            BLOCK_T=blocks.steps,
            BLOCK_K=blocks.channels_in,
            BLOCK_C=blocks.channels_out,
            PRECISION="tf32" if cudnn.conv.fp32_precision == "tf32" else "ieee",
            num_warps=blocks.num_warps,
            num_stages=blocks.num_stages,
        )
    return Made(kept_BTC, active_BTC)
