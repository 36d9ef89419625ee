"""Arguments that both imports have."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_data.importing import ImportOptions


def add(parser: argparse.ArgumentParser) -> None:
    """Add them."""
    parser.add_argument("out", metavar="OUT_SHAR", help="a new folder, or one that an import was stopped in")
    parser.add_argument(
        "--agent-channel", choices=["left", "right"], default="left", help="the agent's, of two channels (left)"
    )
    parser.add_argument(
        "--agent-speakers",
        nargs="+",
        metavar="NAME",
        help="who is the agent in transcripts, instead of SPEAKER_MAIN, agent, Agent, assistant and Assistant",
    )
    parser.add_argument(
        "--user-speakers",
        nargs="+",
        metavar="NAME",
        help="who is the user in transcripts, instead of SPEAKER_OTHER, user and User",
    )
    parser.add_argument("--agent-role", default="agent", metavar="NAME", help="the agent's name in the Shar (agent)")
    parser.add_argument("--user-role", default="user", metavar="NAME", help="the user's name in the Shar (user)")
    parser.add_argument(
        "--source-sample-rate", type=int, default=16000, metavar="HZ", help="rate of the user's audio (16000)"
    )
    parser.add_argument(
        "--target-sample-rate", type=int, default=22050, metavar="HZ", help="rate of the agent's audio (22050)"
    )
    parser.add_argument("--format", choices=["flac", "mp3", "wav"], default="flac", help="how audio is stored (flac)")
    parser.add_argument("--shard-size", type=int, default=100, metavar="N", help="dialogues in a shard (100)")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that import (0: this one alone)")
    parser.add_argument(
        "--on-error",
        choices=["skip", "stop"],
        default="stop",
        help="at a dialogue that can't be used; skip names the first of each kind and counts them (stop)",
    )
    parser.set_defaults(goes_on=True)


def of(args: argparse.Namespace, **more: Any) -> "ImportOptions":
    """Return what the command line says, and ``more``."""
    from s2s_data.importing import ImportOptions

    for name in ("agent_speakers", "user_speakers"):
        if getattr(args, name) is not None:
            more[name] = tuple(getattr(args, name))
    return ImportOptions(
        source_rate_hz=args.source_sample_rate,
        target_rate_hz=args.target_sample_rate,
        audio_format=args.format,
        shard_size=args.shard_size,
        user_role=args.user_role,
        agent_role=args.agent_role,
        on_error=args.on_error,
        workers=args.workers,
        **more,
    )
