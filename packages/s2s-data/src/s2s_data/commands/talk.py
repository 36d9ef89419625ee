"""``s2s-data talk``."""

import argparse
import os
from dataclasses import replace
from pathlib import Path


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("talk", help="build a corpus of tens of hours with packaged speech engines")
    parser.add_argument("folder", type=Path, help="a new folder: corpus/, noise/ and rooms/ go there")
    parser.add_argument("--hours", type=float, default=30.0, help="of training dialogues (default: 30)")
    parser.add_argument("--heldout", type=int, default=64, help="dialogues of each held-out set (default: 64)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Build the corpus."""
    from s2s_data.talk import TalkConfig, build_talk_corpus

    config = replace(TalkConfig(), hours=args.hours, num_heldout=args.heldout, seed=args.seed)
    for name, hours in build_talk_corpus(args.folder, config, num_processes=args.processes, progress=print).items():
        print(f"{name}: {hours:.2f} hours")
    return 0
