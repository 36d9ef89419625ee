"""The command line: parse, check, run; what the user can mend is said in one line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2s_talk.addresses import check_host
from s2s_talk.protocol import Limits

USER_ERROR = 2  # exit code, as argparse's own
INTERRUPTED = 130
DEFAULT_PORT = 8765

_EXAMPLES = """
examples:
  serve exported/demo                              then open http://localhost:8765/
  serve exported/demo --max-sessions 8 --device cuda
  say http://localhost:8765/ question.wav answer.wav
  load http://localhost:8765/ --sessions 1 2 4 8 --seconds 20 --rubbish --out load.json

Exit codes: 0 done, or stopped by Ctrl-C or SIGTERM; 1 a defect, with its traceback; 2 something you can mend, said in
one line.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="s2s_talk",
        description="Talk to a model on a web page; play it a recording; try how many it can talk to.",
        epilog=textwrap.dedent(_EXAMPLES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="serve the page"))
    _add_say(commands.add_parser("say", help="play a recording to the model and store its answer"))
    _add_load(commands.add_parser("load", help="try how many conversations a server on this machine holds"))
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    limits = Limits()
    serve.add_argument("folder", metavar="CKPT", type=Path, help="a folder that hatch run train:export wrote")
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    serve.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"default: {DEFAULT_PORT}; 0: any that is free")
    serve.add_argument(
        "--max-sessions",
        metavar="N",
        type=int,
        default=limits.max_sessions,
        help="users at once (%(default)s)",
    )
    serve.add_argument(
        "--max-duration",
        metavar="SECONDS",
        type=float,
        default=limits.max_duration_s,
        help="of one conversation; memory is made for it (default: %(default)s)",
    )
    serve.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    serve.add_argument("--dtype", help="bring all weights to bfloat16, float16 or float32 (default: as exported)")
    serve.add_argument("--threads", metavar="N", type=int, help="of torch on the CPU (default: half the cores)")
    serve.add_argument("--compile", action="store_true", help="faster on a GPU; starting takes longer")
    serve.add_argument("--allow-remote", action="store_true", help="let --host be reachable from other machines")
    serve.set_defaults(run_command=run_serve)


def _add_say(say: argparse.ArgumentParser) -> None:
    say.add_argument("url", metavar="URL", help="the page's address, as serve printed it")
    say.add_argument("question", metavar="QUESTION", type=Path, help="a recording of the user, any format and rate")
    say.add_argument(
        "answer", metavar="ANSWER", type=Path, help="the wav to write; texts and frames go beside it (.json)"
    )
    say.add_argument(
        "--tail", metavar="SECONDS", type=float, default=3.0, help="silence behind it (default: %(default)s)"
    )
    say.set_defaults(run_command=run_say)


def _add_load(load: argparse.ArgumentParser) -> None:
    load.add_argument("url", metavar="URL", help="the page's address, on this machine")
    load.add_argument("--sessions", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    load.add_argument("--seconds", type=float, default=20.0, help="of each round (default: %(default)s)")
    load.add_argument("--wav", metavar="FILE", type=Path, help="what the users say, over and over (default: noise)")
    load.add_argument("--rubbish", action="store_true", help="each round again, beside users who behave badly")
    load.add_argument("--out", metavar="FILE", type=Path, help="write all figures as JSON")
    load.set_defaults(run_command=run_load)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        exit_code: int = args.run_command(args)
    except KeyboardInterrupt:  # before the server catches it
        return INTERRUPTED
    except (ValueError, OSError) as error:
        if args.debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return exit_code


def run_serve(args: argparse.Namespace) -> int:
    """Check addresses and folder before the slow imports; return the exit code."""
    check_host(args.host, allow_remote=args.allow_remote)
    limits = _limits(args)
    from s2s_talk.load_model import ModelArgs, check_export, open_talker
    from s2s_talk.server import serve

    check_export(args.folder)
    model = ModelArgs(args.folder, args.device, args.dtype, args.compile, args.threads)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="model") as worker:
        talker = worker.submit(open_talker, model, limits).result()
        asyncio.run(serve(talker, limits, worker, host=args.host, port=args.port, allow_remote=args.allow_remote))
    return 0


def run_say(args: argparse.Namespace) -> int:
    """Play a recording; return the exit code."""
    from s2s_talk.say import SayArgs, say

    return say(SayArgs(args.url, args.question, args.answer, args.tail))


def run_load(args: argparse.Namespace) -> int:
    """Load the server; return the exit code: 1 if users who behave badly were felt."""
    from s2s_talk.load import LoadArgs, load

    return load(LoadArgs(args.url, tuple(args.sessions), args.seconds, args.wav, args.rubbish, args.out))


def _limits(args: argparse.Namespace) -> Limits:
    if args.max_sessions < 1:
        raise ValueError(f"--max-sessions is {args.max_sessions}: give 1 or more")
    if not 1 <= args.max_duration <= 24 * 3600:
        raise ValueError(f"--max-duration is {args.max_duration:g}: give seconds, from 1 to a day's 86400")
    if args.threads is not None and args.threads < 1:
        raise ValueError(f"--threads is {args.threads}: give 1 or more")
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port is {args.port}: give one from 0 (any that is free) to 65535")
    return Limits(max_sessions=args.max_sessions, max_duration_s=args.max_duration)
