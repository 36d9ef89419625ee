"""`conv_tail` as one GPU kernel.

Between two convolutions eager torch goes over memory six times (bias, activation, mask, residual, two paddings); at
22 kHz these passes take longer than the convolutions. `torch.compile` would fuse them too, but compiles the stack of
100 convolutions anew for each length of audio.

Shapes: see conv_tail.py.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor

from s2s_model.codecs.conv_tail import Branch, Span, Tail

BLOCK = 4096  # numbers that a program works on

# Each value of these that is 1 or a multiple of 16 would compile a kernel of its own.
VARYING = ["frames_ptr", "end_ptr", "num_steps", "padding", "steps_per_frame"]
VARYING += [f"{name}_{i}" for name in ("offset", "length") for i in range(3)]


@triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator,unused-ignore]
def _conv_tail_kernel(  # type: ignore[no-untyped-def]
    output_0,
    output_1,
    output_2,
    residual_0,
    residual_1,
    residual_2,
    bias_ptr,
    frames_ptr,
    end_ptr,
    kept_ptr,
    padded_ptr,
    offset_0,
    offset_1,
    offset_2,
    length_0,
    length_1,
    length_2,
    num_steps,
    padding,
    steps_per_frame,
    num_channels,
    scale,
    residual_scale,
    slope,
    largest,
    NUM_OUTPUTS: tl.constexpr,
    NUM_RESIDUALS: tl.constexpr,
    KEEP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    example = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)  # of the padded output
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    end = tl.load(end_ptr) * steps_per_frame
    own_end = tl.load(frames_ptr + example) * steps_per_frame

    step = row - padding
    source = tl.where(step < 0, -step, step)
    source = tl.where(source >= end, 2 * (end - 1) - source, source)
    is_there = (step < end + padding) & (source >= 0) & (source < num_steps)
    in_channels = channel < num_channels
    wanted = is_there[:, None] & in_channels[None, :]
    audible = wanted & (source < own_end)[:, None]

    at = source[:, None] * num_channels + channel[None, :]
    base = example * num_channels
    x = tl.load(output_0 + base * length_0 + at + offset_0 * num_channels, mask=audible, other=0.0).to(tl.float32)
    if NUM_OUTPUTS > 1:
        x += tl.load(output_1 + base * length_1 + at + offset_1 * num_channels, mask=audible, other=0.0).to(tl.float32)
    if NUM_OUTPUTS > 2:
        x += tl.load(output_2 + base * length_2 + at + offset_2 * num_channels, mask=audible, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=in_channels, other=0.0)
    x = tl.where(audible, x * scale + bias[None, :], 0.0)
    if NUM_RESIDUALS > 0:
        residual = tl.load(residual_0 + base * num_steps + at, mask=wanted, other=0.0).to(tl.float32)
        if NUM_RESIDUALS > 1:
            residual += tl.load(residual_1 + base * num_steps + at, mask=wanted, other=0.0).to(tl.float32)
        if NUM_RESIDUALS > 2:
            residual += tl.load(residual_2 + base * num_steps + at, mask=wanted, other=0.0).to(tl.float32)
        x += residual_scale * residual
    x = tl.minimum(tl.maximum(x, -largest), largest)

    if KEEP:
        inside = (step >= 0) & (step < num_steps)
        kept = kept_ptr + base * num_steps + step[:, None] * num_channels + channel[None, :]
        value = tl.where((step < end)[:, None], x, 0.0)
        tl.store(kept, value.to(kept_ptr.dtype.element_ty), mask=inside[:, None] & in_channels[None, :])
    x = tl.where(wanted, tl.where(x < 0, x * slope, x), 0.0)
    num_rows = num_steps + 2 * padding
    padded = padded_ptr + base * num_rows + row[:, None] * num_channels + channel[None, :]
    tl.store(padded, x.to(padded_ptr.dtype.element_ty), mask=(row < num_rows)[:, None] & in_channels[None, :])


def conv_tail_cuda(
    tail: Tail,
    span: Span,
    branches: Sequence[Branch],
    num_steps: int,
    residuals: Sequence[Tensor],
    padding: int,
    keep: bool,
) -> tuple[Tensor | None, Tensor]:
    """`conv_tail` on a GPU; all tensors contiguous."""
    first = branches[0].output_BTC
    B, _, C = first.shape
    num_rows = num_steps + 2 * padding
    kept = first.new_empty(B, num_steps, C) if keep else None
    padded = first.new_empty(B, num_rows, C)
    # Kernels take three of each; where there are fewer, the first stands in and isn't read.
    three = [branches[i] if i < len(branches) else branches[0] for i in range(3)]
    others = [residuals[i] if i < len(residuals) else first for i in range(3)]
    block_c = min(triton.next_power_of_2(C), 128 if C > 256 else 256)
    block_t = BLOCK // block_c
    grid = (triton.cdiv(num_rows, block_t), triton.cdiv(C, block_c), B)
    kernel: Any = _conv_tail_kernel
    with torch.cuda.device_of(first):  # the kernel runs on the current device
        kernel[grid](
            *(branch.output_BTC for branch in three),
            *others,
            tail.bias_C,
            span.frames_B,
            span.end_1,
            padded if kept is None else kept,
            padded,
            *(branch.offset for branch in three),
            *(branch.output_BTC.shape[1] for branch in three),
            num_steps,
            padding,
            tail.steps_per_frame,
            C,
            tail.scale,
            tail.residual_scale,
            tail.slope,
            torch.finfo(first.dtype).max,
            NUM_OUTPUTS=len(branches),
            NUM_RESIDUALS=len(residuals),
            KEEP=keep,
            BLOCK_T=block_t,
            BLOCK_C=block_c,
        )
    return kept, padded
