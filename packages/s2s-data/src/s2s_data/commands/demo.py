"""``s2s-data demo``."""

import argparse
from pathlib import Path


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("demo", help="build the demo corpus with packaged speech engines")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the corpus."""
    from s2s_data.demo import build_demo_corpus

    build_demo_corpus(args.folder, progress=print)
    return 0
