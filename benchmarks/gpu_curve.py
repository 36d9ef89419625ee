"""Whether training with all speed-ups learns as training without: loss curves of both, from the same weights and data.

    python -m benchmarks.gpu_curve --out curve.json
    python -m benchmarks.gpu_curve --out curve.json --size tiny --device cpu --steps 20

`plain` runs eagerly with torch's AdamW, `fast` with `peer_size.FAST`. What rounding alone does is shown by `rounding`:
plain once more, its first weights moved by a unit in the last place. Exit code 1: over the last half of the steps fast
is further from plain than `ALLOWED` times what rounding is, or than `FLOOR` of the loss if that is more.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_report import Report, device_traits
from benchmarks.our_side import OurSide
from benchmarks.peer_size import (
    FAST,
    FAST_OPTIMIZER,
    FRAME_S,
    SIZES,
    Size,
    mixed_batch,
    model_section,
    on_device,
    with_codes,
    write_parts,
)
from benchmarks.timing import free
from s2s_parallel.config import ParallelConfig

ALLOWED, FLOOR = 2.0, 2e-3
NUM_BATCHES, DIALOGUES, LONGEST_S = 10, 8, 10.0
LEARNING_RATE = 1e-4


def main() -> int:
    """Train three times, compare, and return the exit code."""
    args = parse()
    torch.set_float32_matmul_precision("medium")
    size, device = SIZES[args.size], torch.device(args.device)
    report = Report(Path(args.out))
    report.put(device_traits(args.device) | {"size": args.size, "steps": args.steps}, "run")
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), size)
        for name in ("plain", "rounding", "fast"):
            with report.guarded(name):
                side = build(Path(folder), size, device, fast=name == "fast")
                if name == "rounding":
                    move_a_little(side)
                curves[name] = train(side, size, args.steps)
                report.put([round(loss, 5) for loss in curves[name]], "losses", name)
                del side
            free()
    if len(curves) == len(("plain", "rounding", "fast")):
        report.put(compare(curves), "compared")
        print(table(curves), flush=True)
        if not report.shown["compared"]["agree"]:
            report.fail("the fast curve leaves the plain one by more than rounding does")
    return 1 if report.failed else 0


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_curve.json")
    parser.add_argument("--size", default="tinyllama", choices=list(SIZES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=200)
    return parser.parse_args()


def build(folder: Path, size: Size, device: torch.device, *, fast: bool) -> OurSide:
    """The same weights each time; bf16 on a GPU. Without a GPU nothing is compiled: that takes longer than it shows."""
    cuda = device.type == "cuda"
    optimizer = {"lr": LEARNING_RATE} | (FAST_OPTIMIZER if fast else {})
    parallel: dict[str, Any] = (FAST if cuda else {"cuda_graphs": True}) if fast else {}
    section = model_section(folder, size, optimizer)
    side = OurSide.build(section, ParallelConfig(**parallel), device, torch.bfloat16 if cuda else torch.float32)
    side.to_training_dtype()
    return side


@torch.no_grad()
def move_a_little(side: OurSide) -> None:
    """Every weight of the first matrix to the next number of its dtype."""
    weight: Tensor = next(side.model.llm.parameters())
    weight.copy_(torch.nextafter(weight, torch.full_like(weight, torch.inf)))


def train(side: OurSide, size: Size, steps: int) -> list[float]:
    """The loss of each step; batches come in turn."""
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(min(NUM_BATCHES, steps)):
        drawn = (0.5 + 0.5 * torch.rand(DIALOGUES, generator=generator)) * LONGEST_S
        durations_s = [LONGEST_S, *(round(float(d) / FRAME_S) * FRAME_S for d in drawn[1:])]
        batch = on_device(mixed_batch(size, durations_s), side.device)
        batches.append(with_codes(batch, side.codes(batch)))
    losses = [side.step(batches[i % len(batches)]) for i in range(steps)]
    return [float(loss) for loss in losses]


def compare(curves: dict[str, list[float]]) -> dict[str, Any]:
    """Mean and largest distance from the plain curve, relative to its loss, over the last half of the steps."""
    half = len(curves["plain"]) // 2
    found: dict[str, Any] = {}
    for name in ("rounding", "fast"):
        pairs = zip(curves["plain"][half:], curves[name][half:], strict=True)
        off = [abs(own - plain) / abs(plain) for plain, own in pairs]
        found[name] = {"mean": float(f"{statistics.mean(off):.3g}"), "largest": float(f"{max(off):.3g}")}
    allowed = max(ALLOWED * found["rounding"]["mean"], FLOOR)
    return found | {"allowed_mean": allowed, "agree": found["fast"]["mean"] <= allowed}


def table(curves: dict[str, list[float]]) -> str:
    """Every tenth of the curves in Markdown."""
    steps = range(0, len(curves["plain"]), max(len(curves["plain"]) // 10, 1))
    rows = [[str(step), *(f"{curve[step]:.4f}" for curve in curves.values())] for step in [*steps, -1]]
    rows[-1][0] = str(len(curves["plain"]) - 1)
    lines = [["step", *curves], ["---"] * (1 + len(curves)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
