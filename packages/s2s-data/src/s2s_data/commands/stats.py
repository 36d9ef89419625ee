"""``s2s-data stats``."""

import argparse
from dataclasses import asdict
from pathlib import Path

from s2s_data.commands import options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("stats", help="count hours, turns, overlap and gaps, and suggest bucket bins")
    options.add_data(parser)
    options.add_roles(parser)
    parser.add_argument("--buckets", type=options.count, default=30, metavar="N", help="of bucket_duration_bins (30)")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write histograms there; needs matplotlib")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Count, print, and write what was asked for."""
    from s2s_data.stats import summarise
    from s2s_data.stats.corpus import measure_data
    from s2s_data.stats.plots import write_plots
    from s2s_data.stats.report import as_text

    measured = measure_data(args.data, options.roles_of(args))
    stats = summarise(measured, num_buckets=args.buckets)
    print(as_text(stats))
    if args.json:
        options.write_json(args.json, asdict(stats))
    if args.plots:
        print("\nplots:", *write_plots(measured, stats, args.plots))
    return 0
