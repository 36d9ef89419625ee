"""``s2s-data check``."""

import argparse

from s2s_data.commands import options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("check", help="read all of the data and list what training would suffer from")
    options.add_data(parser)
    options.add_roles(parser)
    parser.add_argument("--codec", metavar="FINGERPRINT", help="stored codes of another codec are errors")
    parser.add_argument("--workers", type=options.count, default=0, metavar="N", help="processes to read with (0)")
    parser.add_argument("--examples", type=options.count, default=3, metavar="N", help="shown of each kind (3)")
    options.add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check, and return 1 where training would suffer."""
    from s2s_data.check import ERROR, check_shar
    from s2s_data.check.report import as_json, as_text, num_of

    report = check_shar(
        args.data,
        options.roles_of(args),
        codec_fingerprint=args.codec,
        num_workers=args.workers,
        progress=True,
    )
    print(as_text(report, args.examples))
    if args.json:
        options.write_json(args.json, as_json(report, args.data))
    return int(num_of(report, ERROR) > 0)
