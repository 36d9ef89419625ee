"""The command line: ``python -m s2s_eval score HYP REF`` and ``python -m s2s_eval report RUN``."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from s2s_eval.config import ScoringConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for what a user can change (told in one line), 130 after Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: stopped", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="s2s-eval", description="Scores for speech, and a page to listen to it.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_score(commands.add_parser("score", help="score a folder of speech against references"))
    report = commands.add_parser("report", help="write a run's report.html anew")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="the run's folder")
    report.set_defaults(run=_report)
    return parser


def table(metrics: Mapping[str, float], dataset: str) -> str:
    """Return the metrics of one data set, a line each, without its name."""
    ending = f"_{dataset}"
    # a figure over all data sets is here that of the one, and is there once more under its name
    rows = {name.removesuffix(ending): value for name, value in metrics.items() if name + ending not in metrics}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value:>9.2f}" for name, value in rows.items())


def _add_score(parser: argparse.ArgumentParser) -> None:
    default = ScoringConfig()
    add = parser.add_argument
    add("hyp", type=Path, metavar="HYP", help="folder of wav or flac files: the agent, or the user and the agent")
    add("ref", type=Path, metavar="REF", help="folder of ID.txt, ID.json or ID.wav; or a dialogues.jsonl")
    add("--asr", required=True, metavar="ASR", help="the recogniser, as scoring_asr; or none")
    add("--language", default=default.language, metavar="CODE", help="what is spoken, e.g. en or zh (%(default)s)")
    add("--device", default=default.asr_device, help="cpu, cuda or cuda:1 (CUDA where there is one)")
    add("--batch-size", type=_at_least(1), default=default.asr_batch_size, metavar="N",
        help="turns heard together (%(default)s)")  # fmt: skip
    add(
        "--quality",
        default=default.quality,
        help="how natural it sounds: dnsmos or torchscript:/model.pt (%(default)s)",
    )
    add("--speaker-similarity", default=default.speaker_similarity, metavar="MODEL",
        help="of the voices: resemblyzer, nemo:/x.nemo or nemo:NAME (%(default)s)")  # fmt: skip
    add("--no-ceiling", action="store_true", help="don't transcribe the reference speech")
    add("--early-start", type=float, default=default.early_start_s, metavar="S", help="s before its turn (%(default)s)")
    add("--barge-in-stop", type=float, default=default.barge_in_stop_s, metavar="S",
        help="an interrupted agent has to be silent after this (%(default)s)")  # fmt: skip
    add("--silence", type=float, default=default.silence_dbfs, metavar="DBFS", help="what is silent (%(default)s)")
    add("--agent-channel", choices=("left", "right"), default="right", help="of files with two channels (%(default)s)")
    add("--allow-missing", action="store_true", help="score what has a partner, and name the rest")
    add("--name", help="of the data set (HYP's name)")
    add("--out", type=Path, metavar="FOLDER", help="write scores.json, dialogues.jsonl and report.html there")
    add("--step", type=_at_least(0), default=0, metavar="N", help="the scores' place in FOLDER's history (%(default)s)")
    add("--max-samples", type=_at_least(0), default=default.max_samples_per_dataset, metavar="N",
        help="dialogues to listen to in the report (%(default)s)")  # fmt: skip
    parser.set_defaults(run=_score)


def _score(args: argparse.Namespace) -> None:
    # torch and the metrics' libraries take seconds: --help and a misspelt option come at once
    from s2s_eval.folders.audio import LEFT, RIGHT
    from s2s_eval.score_folders import refuse_step, score_folders, write_folder_scores

    config = ScoringConfig(
        scoring_asr=args.asr,
        asr_device=args.device,
        asr_batch_size=args.batch_size,
        language=args.language,
        quality=args.quality,
        speaker_similarity=args.speaker_similarity,
        score_ceiling=not args.no_ceiling,
        early_start_s=args.early_start,
        barge_in_stop_s=args.barge_in_stop,
        silence_dbfs=args.silence,
        max_samples_per_dataset=args.max_samples,
    )
    if args.out:  # now, not after hours
        refuse_step(args.out, args.step)
        if any(args.out.resolve().is_relative_to(folder.resolve()) for folder in (args.hyp, args.ref)):
            raise ValueError(f"{args.out} lies in HYP or REF: what is written there would be scored the next time")
    scores = score_folders(
        args.hyp,
        args.ref,
        config,
        dataset=args.name,
        agent_channel=LEFT if args.agent_channel == "left" else RIGHT,
        allow_missing=args.allow_missing,
    )
    print(table(scores.metrics, scores.dataset))
    print(f"\n{len(scores.dialogues)} dialogues")
    for name, value in scores.about.items():
        print(f"{name}: {value}")
    for note in scores.notes:
        print(f"left out: {note}")
    if args.out:
        print(f"report: {write_folder_scores(scores, args.out, config, args.step)}")


def _report(args: argparse.Namespace) -> None:
    from s2s_eval.report import write_report

    run_dir: Path = args.run_dir
    if not (run_dir / "samples").is_dir() and not (run_dir / "metrics.jsonl").is_file():
        raise ValueError(f"{run_dir} is no run: it has neither samples/ nor metrics.jsonl")
    print(write_report(run_dir))


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    number.__name__ = "number"  # argparse names it where the text isn't one
    return number
