"""The arguments of `calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2s_train.cli_parts import add_command, add_config

_EXAMPLES = """
examples:
  calibrate my.yaml                                     8 bins of the training data; writes my.calibrated.yaml
  calibrate my.yaml --buckets 20 --out big.yaml trainer.precision=bf16-true
  calibrate my.yaml --bins 5,10,20 --stored codes       bins by hand, for data that isn't there yet
  calibrate my.yaml --memory-gib 38                     for a smaller GPU than this one
  calibrate apps/train/conf/demo.yaml --memory-gib 4    on a CPU, which has no limit of its own
  calibrate my.yaml trainer.devices=8 trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy

Steps are real ones of the config's model, precision, optimizer and strategy on batches
of noise as long as the bin; nothing of a run is read or written. The written config inherits CFG and repeats the
KEY=VALUE: train with it, fit my.calibrated.yaml. See docs/calibrate.md.
Exit codes: as for fit.
"""


def add_calibrate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "calibrate",
        "find the largest batch of each duration that fits the GPU",
        "Find duration bins and their largest batches by real training steps, and write them to a config.",
        _EXAMPLES,
    )
    add_config(parser)
    parser.add_argument("--buckets", type=int, metavar="N", help="bins estimated from the training data (default: 8)")
    parser.add_argument("--bins", type=seconds, metavar="S,S,...", help="the bins' longest durations, seconds")
    parser.add_argument(
        "--memory-share",
        type=float,
        default=0.95,
        help="of the GPU's free memory; the rest is a margin (default: 0.95)",
    )
    parser.add_argument("--memory-gib", type=float, metavar="N", help="in place of the share; a CPU needs it")
    parser.add_argument("--max-batch-size", type=int, metavar="B", default=4096, help="no size beyond it is tried")
    parser.add_argument(
        "--stored",
        choices=["codes", "audio", "both"],
        help="what data holds of the agent (default: as the data has it)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the config to write (default: CFG.calibrated.yaml)")
    parser.set_defaults(run_command=run_calibrate)


def run_calibrate(args: argparse.Namespace) -> int:
    """Check config and arguments before the slow imports; return the exit code."""
    from s2s_train.config import load_config

    cfg = load_config(args.cfg, args.overrides)
    from lightning.pytorch.utilities import rank_zero_only

    from s2s_train.calibrate import CalibrateArgs, calibrate, check_args, save_path
    from s2s_train.calibrate_report import check_out, print_calibration, write_config
    from s2s_train.composition import build_model
    from s2s_train.fit import say

    asked = CalibrateArgs(args.buckets, args.bins, args.memory_share, args.memory_gib, args.max_batch_size, args.stored)
    check_args(asked)
    out = save_path(args.cfg, args.out)
    check_out(out)  # before the work
    found = calibrate(cfg, asked, build_model)
    rank_zero_only(print_calibration)(found)
    rank_zero_only(write_config)(out, args.cfg, cfg, args.overrides, found)
    say(f"written to {out}: fit {out}")
    return 0


def seconds(text: str) -> tuple[float, ...]:
    """Return the numbers of "5,10,20"; the name is what argparse tells of another text."""
    return tuple(float(number) for number in text.split(","))
