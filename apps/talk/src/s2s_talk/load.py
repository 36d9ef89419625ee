"""`load`: how many conversations a server holds at real time, and whether bad ones beside them are felt."""

import asyncio
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from s2s_talk.addresses import is_loopback
from s2s_talk.disturb import AS_EXPECTED, LANES, UNJUDGED, disturb
from s2s_talk.load_figures import Round
from s2s_talk.user import Audio, connected, talk, was_sent_away
from s2s_talk.wav import noise_audio, repeated, wav_audio

MOST_SESSIONS = 256
LONGEST_S = 300.0
FELT = 1  # exit code: bad users were felt, or not sent away as they should be


@dataclass(frozen=True)
class LoadArgs:
    """What the command line asks for."""

    url: str
    sessions: tuple[int, ...]  # how many at once, round by round
    seconds: float  # of each round
    wav: Path | None = None  # what users say, over and over; None: noise
    rubbish: bool = False  # each round again, beside users who behave badly
    out: Path | None = None  # JSON of all figures


def check(args: LoadArgs) -> None:
    """Check that only this machine is loaded, and for a bounded time.

    Raises:
        ValueError: another machine, or too much.
    """
    host = urlsplit(args.url).hostname
    if not host or not is_loopback(host):
        raise ValueError(f"{args.url}: load is for a server on this machine (http://localhost:8765/), not for others'")
    if not args.sessions or not all(1 <= number <= MOST_SESSIONS for number in args.sessions):
        raise ValueError(f"--sessions {' '.join(map(str, args.sessions))}: give numbers from 1 to {MOST_SESSIONS}")
    if not 1 <= args.seconds <= LONGEST_S:
        raise ValueError(f"--seconds {args.seconds:g}: give 1 to {LONGEST_S:g}")


def load(args: LoadArgs) -> int:
    """Run the rounds, print a line of each, write `args.out`; return the exit code.

    Raises:
        ValueError, OSError: as `check`, or there is no server, or it has too few places.
    """
    check(args)
    audio = wav_audio(args.wav, tail_s=1.0) if args.wav else None
    rounds = asyncio.run(_all_rounds(args, audio))
    held = [figures["sessions"] for figures in rounds if figures["held"] and "beside" not in figures]
    report = {"url": args.url, "seconds": args.seconds, "most_held": max(held, default=0), "rounds": rounds}
    print(f"held at real time: {report['most_held']} of {max(args.sessions)} sessions")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    felt = [figures for figures in rounds if not figures.get("as_expected", True)]
    if felt:
        print("users who behave badly were felt, or not sent away as they should be: see above")
    return FELT if felt else 0


async def _all_rounds(args: LoadArgs, audio: Audio | None) -> list[dict[str, Any]]:
    await _check_places(args)
    rounds = []
    for number in args.sessions:
        alone = (await _round(args, audio, number)).figures()
        _print(alone)
        rounds.append(alone)
        if args.rubbish:
            beside = await _round_beside_bad_users(args, audio, number, alone["held"])
            _print(beside)
            rounds.append(beside)
    return rounds


async def _check_places(args: LoadArgs) -> None:
    async with connected(args.url) as ws:
        hello = json.loads(await ws.receive_str())
    if hello["type"] != "hello":
        raise ValueError(f"the server isn't free for a load test: {hello.get('text')}")
    needed = max(args.sessions) + (len(LANES) if args.rubbish else 0)
    if hello["max_sessions"] < needed:
        raise ValueError(
            f"the server has {hello['max_sessions']} places, and {needed} are needed"
            f"{f' ({len(LANES)} of them for users who behave badly)' if args.rubbish else ''}: start it with "
            f"--max-sessions {needed}"
        )
    if hello["max_duration_s"] < args.seconds:
        raise ValueError(
            f"--seconds {args.seconds:g}: the server ends a conversation after {hello['max_duration_s']:g} s, start it "
            "with a longer --max-duration"
        )


async def _round(args: LoadArgs, audio: Audio | None, number: int) -> Round:
    """Let `number` users talk at once, none of them exactly when another does."""

    async def one(seed: int) -> Any:
        await asyncio.sleep(0.08 * seed / number)
        said = repeated(audio, args.seconds) if audio else noise_audio(args.seconds, seed)
        return await talk(args.url, said)

    users = await asyncio.gather(*(one(seed) for seed in range(number)))
    frames = next((len(user.sent_at_s) for user in users if not was_sent_away(user)), 1)
    return Round(list(users), frames)


async def _round_beside_bad_users(args: LoadArgs, audio: Audio | None, number: int, held_alone: bool) -> dict[str, Any]:
    outcomes: Counter[str] = Counter()
    bad = asyncio.create_task(disturb(args.url, outcomes))
    measured = await _round(args, audio, number)
    bad.cancel()
    with suppress(asyncio.CancelledError):
        await bad
    figures = measured.figures()
    unexpected = [outcome for outcome in outcomes if not outcome.endswith((AS_EXPECTED, UNJUDGED))]
    is_fine = not unexpected and not figures["sent_away"] and (measured.is_held or not held_alone)
    return {**figures, "beside": dict(outcomes), "as_expected": is_fine}


def _print(figures: dict[str, Any]) -> None:
    lag, tick = figures["lag_ms"], figures["tick_ms"]
    verdict = "held" if figures["held"] else "NOT held"
    print(
        f"{figures['sessions']:3d} sessions {verdict:8s} on time {100 * figures['on_time_share']:5.1f} %  "
        f"lag ms {_row(lag)}  tick ms {_row(tick)}  late {figures['late']}, skipped {figures['skipped']}",
        flush=True,
    )
    for reason in figures["sent_away"]:
        print(f"    sent away: {reason}")
    if "beside" in figures:
        print(f"    beside {', '.join(f'{count} × {outcome}' for outcome, count in figures['beside'].items())}")


def _row(figures: dict[str, float]) -> str:
    return "/".join(f"{figures[key]:.0f}" for key in ("p50", "p95", "p99", "max")) if figures else "–"
