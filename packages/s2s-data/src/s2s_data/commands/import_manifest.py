"""``s2s-data import-manifest``."""

import argparse

from s2s_data.commands import import_options


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("import-manifest", help="a jsonl manifest, a dialogue a line, as a Shar")
    parser.add_argument("manifest", metavar="MANIFEST.jsonl", help="its relative paths are relative to it")
    import_options.add(parser)
    parser.add_argument(
        "--field",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=KEY",
        help="what the manifest calls a value, as in user_audio=wav_a or turns=meta.turns; NAME is id, user_audio, "
        "agent_audio, turns, audio, offset, duration, text, answer_audio, answer_offset, answer_duration or answer",
    )
    parser.add_argument(
        "--pad-channels", action="store_true", help="pad the shorter of a dialogue's two files to the longer one"
    )
    parser.add_argument(
        "--lead-in", type=float, default=0.4, metavar="S", help="silence before a single question, seconds (0.4)"
    )
    parser.add_argument(
        "--answer-gap", type=float, default=0.32, metavar="S", help="silence before its answer, seconds (0.32)"
    )
    parser.add_argument(
        "--tail", type=float, default=0.48, metavar="S", help="silence after its answer, seconds (0.48)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Import."""
    from s2s_data.commands.bars import DialogueBar
    from s2s_data.importing import Spacing, import_manifest

    with DialogueBar("import") as bar:
        summary = import_manifest(
            args.manifest,
            args.out,
            import_options.of(args, pad_channels=args.pad_channels),
            fields=_fields(args.field),
            spacing=Spacing(args.lead_in, args.answer_gap, args.tail),
            agent_channel=args.agent_channel,
            start=bar.start,
            progress=bar.add,
            say=bar.say,
        )
    print("\n".join(summary.lines()))
    return 0


def _fields(pairs: list[str]) -> dict[str, str]:
    from s2s_data.errors import DataError

    fields = {}
    for pair in pairs:
        name, _, key = pair.partition("=")
        if not name or not key:
            raise DataError(f"--field {pair} must be NAME=KEY, as in user_audio=wav_a")
        fields[name] = key
    return fields
