"""What a trained model reaches, beside what it should: a run's last checkpoint is validated, its scores are the table.

    hatch run recipe:results runs/talk docs/results.md
    hatch run recipe:results runs/talk docs/results.md trainer.precision=32-true
    hatch run recipe:results runs/talk/validations/samples/step_9000/scores.json docs/results.md

All dialogues of the held-out sets are validated, with keys of the config set as given; or a validation's scores are
taken. Exit code 1: a target is missed on `heldout`, or a figure of it is not there; 2: there are no scores.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELD_OUT = ("heldout", "heldout_wording", "heldout_voice")  # the first: cases that training never asks


@dataclass(frozen=True)
class Target:
    """A figure of a data set, {ds} in its name, and how good it should be; a share of `of` where that is named."""

    what: str
    figure: str
    limit: float
    at_most: bool = False
    of: str | None = None

    def value(self, metrics: dict[str, float], dataset: str) -> float | None:
        """The figure, or None where the scores don't have it."""
        found = metrics.get(self.figure.format(ds=dataset))
        if self.of is None or found is None:
            return found
        whole = metrics.get(self.of.format(ds=dataset))
        return found / whole if whole else None

    def is_met(self, value: float | None) -> bool:
        """Whether it is good enough."""
        return value is not None and (value <= self.limit if self.at_most else value >= self.limit)

    @property
    def wanted(self) -> str:
        """The limit, as tables show it."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"


TARGETS = (
    Target("ASR-BLEU / its ceiling", "val_asr_bleu_{ds}", 0.7, of="ceiling_asr_bleu_{ds}"),
    Target("right answers, % heard", "val_answer_accuracy_{ds}", 80.0),
    Target("response latency, median s", "val_latency_s_median_{ds}", 0.69, at_most=True),
    Target("barge-ins it stops for, %", "val_barge_in_success_{ds}", 94.5),
    Target("WER of what it says against what it writes, %", "val_said_wer_{ds}", 15.0, at_most=True),
)
BESIDE = {
    "ASR-BLEU": "val_asr_bleu_{ds}",
    "its ceiling": "ceiling_asr_bleu_{ds}",
    "another dialogue's answers": "shuffled_asr_bleu_{ds}",
    "right answers, % written": "val_answer_accuracy_text_{ds}",
    "right answers, ceiling": "ceiling_answer_accuracy_{ds}",
    "text BLEU": "val_txt_bleu_{ds}",
}


def table(metrics: dict[str, float], datasets: list[str]) -> str:
    """Targets and what they rest on, a column for each data set, in Markdown."""
    rows = [["", "wanted", *datasets], ["---"] * (2 + len(datasets))]
    for target in TARGETS:
        values = [target.value(metrics, dataset) for dataset in datasets]
        cells = [_shown(value) + ("" if target.is_met(value) else " ✗") for value in values]
        rows.append([target.what, target.wanted, *cells])
    for what, figure in BESIDE.items():
        rows.append([what, "", *(_shown(metrics.get(figure.format(ds=dataset))) for dataset in datasets)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def validate(run: Path, overrides: Sequence[str]) -> Path:
    """Validate the run's last checkpoint; returns the scores' file.

    Raises:
        FileNotFoundError: the folder isn't a run's, or no scores were written.
        subprocess.CalledProcessError: the validation has told what went wrong.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: no such file; give a run's folder, or the scores.json of a validation")
    command = [sys.executable, "-m", "s2s_train", "validate", str(config), "ckpt=last"]
    subprocess.run([*command, "trainer.limit_val_batches=null", *overrides], check=True)
    written = [*run.glob("validations/samples/step_*/scores.json")]
    if not written:
        raise FileNotFoundError(f"{run}/validations/samples: the validation wrote no scores.json there")
    return max(written, key=lambda path: path.stat().st_mtime_ns)


def read_scores(path: Path) -> dict[str, Any]:
    """The scores of a validation.

    Raises:
        ValueError: the file holds none.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a run's folder, or the scores.json of a validation")
    scores: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(scores.get("metrics"), dict):
        raise ValueError(f"{path} has no `metrics`: give a scores.json that a validation wrote")
    return scores


def page(scores: dict[str, Any], source: str) -> tuple[str, bool]:
    """The page, which names the command's arguments, and whether all targets are met on `heldout`."""
    metrics = scores["metrics"]
    figures = [*(target.figure for target in TARGETS), *BESIDE.values()]
    datasets = [name for name in HELD_OUT if any(figure.format(ds=name) in metrics for figure in figures)]
    met = all(target.is_met(target.value(metrics, HELD_OUT[0])) for target in TARGETS)
    text = (
        "# Results of the talk recipe\n\n"
        f"`hatch run recipe:results {source}`, step {scores.get('step')}; what the figures are: "
        "[scoring.md](scoring.md). ✗: a target is missed.\n\n"
        f"{table(metrics, datasets)}\n\n"
        f"Scored with {json.dumps(scores.get('about', {}), sort_keys=True)}.\n"
    )
    return text, met


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="recipe:results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run's folder, or the scores.json of one of its validations")
    parser.add_argument("out", type=Path, help="the page to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, when a run is validated")
    args = parser.parse_args(arguments)
    try:
        scores = args.run if args.run.suffix == ".json" else validate(args.run, args.overrides)
        text, met = page(read_scores(scores), " ".join([str(args.run), str(args.out), *args.overrides]))
    except subprocess.CalledProcessError as error:
        print(f"results: validate ended with {error.returncode}, as told above", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"results: {error}", file=sys.stderr)
        return 2
    args.out.write_text(text)
    print(text)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
