"""AdamW's step over a table of weights, as one GPU kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,unused-ignore]
from torch import Tensor
from triton.language.extra import libdevice  # type: ignore[import-not-found,unused-ignore]

from s2s_model.weight_tables import ALIGNED, PIECE, WeightTable

COLUMNS = 7  # of the table: weight, gradient, two averages, steps; then size and first piece
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _update_piece(  # type: ignore[no-untyped-def]
    row_ptr,
    at,
    inside,
    scale_ptr,
    lr,
    log_beta1,
    log_beta2,
    share1,
    share2,
    eps,
    decay,
    HAS_SCALE: tl.constexpr,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    weight_ptr = tl.multiple_of(tl.load(row_ptr).to(tl.pointer_type(TYPE)), ALIGNED) + at
    gradient_ptr = tl.multiple_of(tl.load(row_ptr + 1).to(tl.pointer_type(TYPE)), ALIGNED) + at
    mean_ptr = tl.multiple_of(tl.load(row_ptr + 2).to(tl.pointer_type(TYPE)), ALIGNED) + at
    square_ptr = tl.multiple_of(tl.load(row_ptr + 3).to(tl.pointer_type(TYPE)), ALIGNED) + at
    num_steps = tl.load(tl.load(row_ptr + 4).to(tl.pointer_type(tl.float32)))

    weight = tl.load(weight_ptr, mask=inside).to(tl.float32)
    gradient = tl.load(gradient_ptr, mask=inside).to(tl.float32)
    mean = tl.load(mean_ptr, mask=inside).to(tl.float32)
    square = tl.load(square_ptr, mask=inside).to(tl.float32)
    if HAS_SCALE:
        gradient = gradient / tl.load(scale_ptr)

    mean += (gradient - mean) * share1
    square += (gradient * gradient - square) * share2
    correction1 = -libdevice.expm1(num_steps * log_beta1)
    correction2 = -libdevice.expm1(num_steps * log_beta2)
    weight -= lr * decay * weight
    weight -= lr / correction1 * mean / (tl.sqrt(square) * (1 / tl.sqrt(correction2)) + eps)

    tl.store(weight_ptr, weight.to(TYPE), mask=inside)
    tl.store(mean_ptr, mean.to(TYPE), mask=inside)
    tl.store(square_ptr, square.to(TYPE), mask=inside)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _adamw_kernel(  # type: ignore[no-untyped-def]
    rows_ptr,
    weight_of_piece_ptr,
    scale_ptr,
    found_inf_ptr,
    lr,
    log_beta1,
    log_beta2,
    share1,
    share2,
    eps,
    decay,
    HAS_SCALE: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
    TYPE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGNED: tl.constexpr,
    PIECE: tl.constexpr,
):
    piece = tl.program_id(0)
    row_ptr = rows_ptr + tl.load(weight_of_piece_ptr + piece).to(tl.int64) * COLUMNS
    size = tl.load(row_ptr + 5)
    begin = (piece - tl.load(row_ptr + 6)) * PIECE
    at = begin + tl.arange(0, PIECE)
    if HAS_FOUND_INF:
        size = tl.where(tl.load(found_inf_ptr) == 0.0, size, 0)
    if begin + PIECE <= size:  # without a mask, which would be asked for each number
        _update_piece(
            row_ptr, at, None, scale_ptr, lr, log_beta1, log_beta2, share1, share2, eps, decay,
            HAS_SCALE, TYPE, ALIGNED,
        )  # fmt: skip
    elif begin < size:
        _update_piece(
            row_ptr, at, at < size, scale_ptr, lr, log_beta1, log_beta2, share1, share2, eps, decay,
            HAS_SCALE, TYPE, ALIGNED,
        )  # fmt: skip


def update(table: WeightTable, group: dict[str, Any], scale: Tensor | None, found_inf: Tensor | None) -> None:
    """One step of the weights in `table`, whose counts of steps are of after it.

    Args:
        table: of weights, gradients, averages of gradients and of their squares, and float32 counts of steps.
        group: the optimizer's, with lr, betas, eps and weight_decay.
        scale: float32 scalar that gradients are divided by.
        found_inf: float32 scalar; nothing is done where it isn't 0.
    """
    beta1, beta2 = group["betas"]
    with torch.cuda.device(table.rows.device):
        _adamw_kernel[(len(table.weight_of_piece),)](
            table.rows, table.weight_of_piece, scale, found_inf, float(group["lr"]),
            math.log(beta1) if beta1 else -math.inf, math.log(beta2) if beta2 else -math.inf, 1 - beta1, 1 - beta2,
            group["eps"], group["weight_decay"], HAS_SCALE=scale is not None, HAS_FOUND_INF=found_inf is not None,
            TYPE=_TYPES[table.dtype], COLUMNS=COLUMNS, ALIGNED=ALIGNED, PIECE=PIECE, num_warps=8,
        )  # fmt: skip
