"""What the device can do at best: a plain matrix product and a plain copy, and the times that follow."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.timing import timed_ms

FORMULAS = {
    "step_floor": "operations of forward and backward / matrix product's rate + bytes of AdamW / copy's rate",
    "frame_floor": "bytes of the LLM's blocks and heads / copy's rate, of one frame of the whole batch",
    "operations": "s2s_parallel.speed.flops_of_step: 6 a trained weight and frame, causal attention, 6 an encoder's",
    "mfu": "operations / step time / the GPU's dense bf16 peak (s2s_parallel.gpus); padding counts, the codec doesn't",
}


def measure(device: torch.device) -> dict[str, Any]:
    """Operations a second of a large bf16 matrix product, bytes a second that a copy reads and writes."""
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (512, torch.float32)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    source = torch.empty(2**30 if cuda else 2**24, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product_ms = _median_ms(lambda: torch.mm(left, right))
    copy_ms = _median_ms(lambda: target.copy_(source))
    return {
        "matrix": f"{side}^3 {str(dtype).removeprefix('torch.')}",
        "flops_per_s": 2 * side**3 / product_ms * 1000,
        "bytes_per_s": 2 * source.numel() / copy_ms * 1000,
    }


def _median_ms(call: Any) -> float:
    for _ in range(3):
        call()
    return statistics.median(timed_ms(lambda: [call() for _ in range(10)]) / 10 for _ in range(5))
