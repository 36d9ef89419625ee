"""`say`: a recording talks to the model, in real time; its answer is stored."""

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from s2s_talk.load_figures import percentiles
from s2s_talk.user import Answers, talk, was_sent_away
from s2s_talk.wav import wav_audio, write_pcm


@dataclass(frozen=True)
class SayArgs:
    """What the command line asks for."""

    url: str
    question: Path  # any audio file
    answer: Path  # the wav to write; its texts and frames go into a .json beside it
    tail_s: float = 3.0  # of silence behind the question


def say(args: SayArgs) -> int:
    """Play `args.question`, write the answer; return the exit code.

    The answer begins when the question does: frame for frame it is what the agent said meanwhile.

    Raises:
        ValueError, OSError: no such server, no such recording, or no place for the answer.
    """
    if args.answer.suffix.lower() != ".wav":
        raise ValueError(f"{args.answer}: the answer is written as a wav, give a name that ends in .wav")
    if not args.answer.absolute().parent.is_dir():
        raise FileNotFoundError(f"{args.answer}: there is no folder {args.answer.absolute().parent}, make it first")
    answers = asyncio.run(talk(args.url, wav_audio(args.question, args.tail_s)))
    for notice in answers.notices:
        print(f"notice: {notice}", file=sys.stderr)
    if answers.audio:
        write_pcm(args.answer, answers.audio, answers.hello["target_sample_rate_hz"])
        args.answer.with_suffix(".json").write_text(json.dumps(_record(answers), indent=1) + "\n")
    if was_sent_away(answers):
        raise ValueError(f"the server ended the conversation: {answers.error or f'code {answers.close_code}'}")
    print(f"agent: {_joined(answers, 'text')}")
    if answers.hello["writes_user_text"]:
        print(f"user:  {_joined(answers, 'user_text')}")
    print(f"{len(answers.audio)} frames, {answers.num_late} late, {answers.num_skipped} skipped; lag {_lag(answers)}")
    return 0


def _joined(answers: Answers, key: str) -> str:
    return "".join(frame[key] for frame in answers.frames)


def _lag(answers: Answers) -> str:
    figures = percentiles(answers.lags_ms())
    return f"{figures['p50']:.0f} ms (median), {figures['p99']:.0f} ms (99 % within)" if figures else "unknown"


def _record(answers: Answers) -> dict[str, object]:
    return {
        "text": _joined(answers, "text"),
        "user_text": _joined(answers, "user_text"),
        "lag_ms": percentiles(answers.lags_ms()),
        "hello": answers.hello,
        "frames": answers.frames,
    }
