"""What the commands' parsers have in common."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

Commands = argparse._SubParsersAction


def add_command(commands: Commands[Any], name: str, summary: str, description: str, examples: str) -> Any:
    """Add a command, whose `--help` ends in its examples; return its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=textwrap.dedent(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add CFG and what is set over it."""
    parser.add_argument("cfg", metavar="CFG", type=Path, help="YAML config")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="config keys by dotted path; an unknown one is an error"
    )
