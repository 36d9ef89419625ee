"""Arguments that several commands have."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_data.roles import Roles


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the Shars and blends to read."""
    parser.add_argument("data", nargs="+", metavar="SHAR|BLEND.yaml", help="Shar folders, or YAML files of a blend")


def add_roles(parser: argparse.ArgumentParser) -> None:
    """Add the names of the speakers."""
    parser.add_argument("--input-roles", nargs="+", default=["user"], metavar="NAME", help="the user's speaker names")
    parser.add_argument("--output-roles", nargs="+", default=["agent"], metavar="NAME", help="the agent's")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the JSON file to write."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this JSON file")


def count(text: str) -> int:
    """Parse an argument that counts something."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} must be 0, 1, 2, ...")
    return int(text)


def roles_of(args: argparse.Namespace) -> "Roles":
    """Return the roles that the command line names."""
    from s2s_data.roles import Roles

    return Roles.of(args.input_roles, args.output_roles)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` for programs and for people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
