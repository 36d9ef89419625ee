"""``s2s-data import-stereo``."""

import argparse

from s2s_data.commands import import_options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "import-stereo", help="two-channel recordings with a transcript beside each, as a Shar"
    )
    parser.add_argument(
        "source",
        metavar="FOLDER|DATA.jsonl",
        help='a folder of them, or a jsonl of {"path", "duration"} as moshi-finetune has it',
    )
    import_options.add(parser)
    parser.add_argument(
        "--max-gap",
        type=float,
        default=0.8,
        metavar="S",
        help="words of one side that are further apart belong to two turns, seconds (0.8)",
    )
    parser.add_argument(
        "--find-user-turns",
        action="store_true",
        help="where a transcript has no turn of the user, take the loud parts of the user's channel, without text",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import."""
    from s2s_data.commands.bars import DialogueBar
    from s2s_data.importing import import_stereo

    options = import_options.of(args, max_gap_s=args.max_gap, find_user_turns=args.find_user_turns)
    with DialogueBar("import") as bar:
        summary = import_stereo(
            args.source,
            args.out,
            options,
            agent_channel=args.agent_channel,
            start=bar.start,
            progress=bar.add,
            say=bar.say,
        )
    print("\n".join(summary.lines()))
    return 0
