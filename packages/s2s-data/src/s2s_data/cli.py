"""The command line: ``s2s-data check`` and ``s2s-data demo``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from s2s_data.check import check_shar
from s2s_data.errors import DataError
from s2s_data.roles import Roles


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 where training would suffer, 2 for what can't be done."""
    parser = argparse.ArgumentParser(prog="s2s-data", description="Duplex conversations as lhotse Shar.")
    commands = parser.add_subparsers(required=True)
    check = commands.add_parser("check", help="read a Shar and list what training would suffer from")
    check.add_argument("folders", nargs="+", metavar="SHAR")
    check.add_argument("--input-roles", nargs="+", default=["user"], help="speaker names of the user")
    check.add_argument("--output-roles", nargs="+", default=["agent"], help="speaker names of the agent")
    check.set_defaults(run=_check)
    demo = commands.add_parser("demo", help="build the demo corpus with packaged speech engines")
    demo.add_argument("folder", type=Path)
    demo.set_defaults(run=_demo)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except (DataError, ImportError, OSError) as error:
        print(f"s2s-data: {error}", file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> int:
    roles = Roles.of(args.input_roles, args.output_roles)
    worst = 0
    for folder in args.folders:
        num_cuts, problems = check_shar(folder, roles)
        for problem in problems:
            print(problem)
        print(f"{folder}: {num_cuts} cuts, {len(problems)} problems")
        worst = max(worst, int(bool(problems) or num_cuts == 0))
    return worst


def _demo(args: argparse.Namespace) -> int:
    from s2s_data.demo import build_demo_corpus

    build_demo_corpus(args.folder, progress=print)
    return 0


if __name__ == "__main__":
    sys.exit(main())
