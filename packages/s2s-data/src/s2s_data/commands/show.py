"""``s2s-data show``."""

import argparse
import shutil
from pathlib import Path

from s2s_data.commands import options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("show", help="show one cut: both channels, the turns, and the token grid")
    parser.add_argument("data", metavar="SHAR|BLEND.yaml", help="a Shar folder, or the YAML file of a blend")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--cut", metavar="ID", help="the cut's id")
    which.add_argument("--index", type=options.count, default=0, metavar="N", help="or its place, counted from 0 (0)")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="write a picture (needs matplotlib), not text")
    options.add_roles(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show the cut, as a picture if a file is named for it."""
    from s2s_data.show import find_cut, view_cut
    from s2s_data.show.picture import write_picture
    from s2s_data.show.terminal import as_text

    view = view_cut(find_cut(args.data, cut_id=args.cut, index=args.index), options.roles_of(args))
    if args.out:
        write_picture(view, args.out)
        print(args.out)
    else:
        print(as_text(view, shutil.get_terminal_size((100, 24)).columns))
    return 0
