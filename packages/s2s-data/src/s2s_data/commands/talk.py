"""``s2s-data talk``."""

import argparse
import os
from dataclasses import replace
from pathlib import Path


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("talk", help="build a corpus of tens of hours with packaged speech engines")
    parser.add_argument("folder", type=Path, help="a new folder: corpus/, text/, noise/ and rooms/ go there")
    parser.add_argument("--hours", type=float, default=30.0, help="of training dialogues (default: 30)")
    parser.add_argument("--heldout", type=int, default=96, help="dialogues of each held-out set (default: 96)")
    parser.add_argument(
        "--texts", type=float, default=4.0, help="dialogues of text alone for each of training's (default: 4)"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="default: one a core")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Build the corpus."""
    from s2s_data.talk import TalkConfig, build_talk_corpus

    sizes = {"hours": args.hours, "num_heldout": args.heldout, "texts_per_dialogue": args.texts}
    config = replace(TalkConfig(), **sizes, seed=args.seed)
    for name, hours in build_talk_corpus(args.folder, config, num_processes=args.processes, progress=print).items():
        print(f"{name}: {hours:.2f} hours")
    return 0
