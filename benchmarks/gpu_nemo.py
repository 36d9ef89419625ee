"""NeMo 3.0's DuplexS2SModel and ours beside each other: same shapes, weights and batches, one run, one GPU.

    python -m benchmarks.gpu_nemo --out gpu_nemo.json
    python -m benchmarks.gpu_nemo --out gpu_nemo.json --only agree train --who ours --no-compile
    python -m benchmarks.gpu_nemo --size tiny --device cpu --out tiny.json

First NeMo's model is built and measured, its float32 weights stay on the host, and it is freed; then ours gets these
weights. Sections: `floor` (what the device can do), `agree` (losses, gradients and codes), `train`, `parts` (of a
training step), `decode`, `live` (ours alone), `validation`. The JSON is written after each. Exit code 1: a section
failed, or the losses differ by more than the tolerances, which the JSON states.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.comparison import SECTIONS, Comparison
from benchmarks.floor import FORMULAS
from benchmarks.gpu_report import Report, device_traits
from benchmarks.gpu_tables import tables
from benchmarks.peer_size import FAST, SIZES, write_parts


def main() -> int:
    """Run the chosen sections of both models; return the exit code."""
    args = parse()
    torch.set_float32_matmul_precision("medium")  # as NeMo's and our training scripts have it
    torch.backends.cudnn.allow_tf32 = True
    report = Report(Path(args.out))
    report.put(
        device_traits(args.device)
        | {"size": args.size, "dtype": args.dtype, "model": args.model, "parallel": args.parallel},
        "run",
    )
    report.put(FORMULAS, "formulas")
    with tempfile.TemporaryDirectory() as folder:
        with report.guarded("parts of the models"):
            write_parts(Path(folder), SIZES[args.size])
        Comparison(args, report, Path(folder)).run()
    print(tables(report.shown), flush=True)
    return 1 if report.failed else 0


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_nemo.json")
    parser.add_argument("--size", default="tinyllama", choices=list(SIZES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], help="by default bfloat16 on a GPU, as bf16-true")
    parser.add_argument("--only", nargs="+", default=list(SECTIONS), choices=SECTIONS, metavar="SECTION")
    parser.add_argument("--who", nargs="+", default=["nemo", "ours"], choices=["nemo", "ours"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="ours; by default on a GPU")
    parser.add_argument("--parallel", nargs="+", default=[], metavar="KEY=VALUE", help="of our `parallel` section")
    parser.add_argument("--model", nargs="+", default=[], metavar="KEY=VALUE", help="of our `model` section")
    parser.add_argument(
        "--cases", nargs="+", metavar="CASE", help='of training and decoding, as they are named, e.g. "16 x 20 s"'
    )
    parser.add_argument("--session-s", type=float, help="seconds of audio of the live session; default: the size's")
    parser.add_argument("--session-limit-s", type=float, default=90.0, help="stop the live session after so long")
    args = parser.parse_args()
    cuda = args.device == "cuda"
    args.dtype = args.dtype or ("bfloat16" if cuda else "float32")
    fast = cuda if args.compile is None else args.compile
    args.parallel = (FAST if fast else {"compile": False}) | settings(args.parallel)
    return args


def settings(pairs: list[str]) -> dict[str, Any]:
    """KEY=VALUE pairs, values as in YAML."""
    return {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}


if __name__ == "__main__":
    raise SystemExit(main())
