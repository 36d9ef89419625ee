"""The command line: ``s2s-data COMMAND``; each command is a module of :mod:`s2s_data.commands`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from s2s_data.commands import NAMES
from s2s_data.errors import DataError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is 0, or 1 where training would suffer, 2 for what can't be done, and 130 after Ctrl-C.
    """
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (DataError, ImportError, OSError) as error:
        print(f"s2s-data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = ": the same command goes on where it was" if getattr(args, "goes_on", False) else ""
        print(f"s2s-data: stopped{goes_on}", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="s2s-data", description="Duplex conversations: from recordings to tensors.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name in NAMES:
        import_module(f"s2s_data.commands.{name}").add_to(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
