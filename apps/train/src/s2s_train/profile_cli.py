"""The arguments of `profile`."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2s_train.cli_parts import add_command, add_config

_EXAMPLES = """
examples:
  profile my.yaml                              steps 10, 11 and 12: a table, and a trace for ui.perfetto.dev
  profile my.yaml --steps 50:52 --memory       also who holds the GPU's memory, for pytorch.org/memory_viz
  nsys profile -c cudaProfilerApi -o steps python -m s2s_train profile my.yaml --nvtx
  profile apps/train/conf/demo.yaml --steps 3:6 --out /tmp/demo

Trains from the config's own weights, and saves nothing but the profile. A run is
profiled on its way by fit my.yaml profile.steps=[10,13]. See docs/profile.md.
Exit codes: as for fit.
"""


def add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "profile",
        "show where the time of a training step goes",
        "Train some steps of CFG under torch's profiler, and print what each part of a step takes.",
        _EXAMPLES,
    )
    add_config(parser)
    parser.add_argument(
        "--steps", metavar="FIRST:END", default="10:13", help="optimizer steps, from 0 (default: 10:13)"
    )
    parser.add_argument("--memory", action="store_true", help="also record the GPU's memory")
    parser.add_argument(
        "--nvtx", action="store_true", help="ranges for Nsight Systems, in place of the trace and table"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="for the files (default: profile/ in the run's folder)")
    parser.set_defaults(run_command=run_profile)


def run_profile(args: argparse.Namespace) -> int:
    """Check config and steps before the slow imports; return the exit code."""
    from s2s_train.config import load_named
    from s2s_train.profile_config import ProfileConfig, parse_steps

    cfg = load_named(args.cfg, args.overrides)
    asked = ProfileConfig(parse_steps(args.steps), args.memory, args.nvtx)
    from s2s_train.composition import build_model
    from s2s_train.profile import profile_steps
    from s2s_train.run_folder import RunFolder

    out = args.out or RunFolder.of(cfg).path / "profile"
    profile_steps(cfg, asked, out, build_model)
    return 0
