"""The page of results: what is missed is marked, and what is not there isn't taken as met."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.talk import results
from recipes.talk.results import TARGETS, page, read_scores, table
from tests.recipes.builders import fit

ROOT = Path(__file__).parents[2]
ONE_SET = [f"data.validation_ds.datasets.{name}=null" for name in ("heldout_voice", "heldout_wording")]
GOOD = {
    "val_asr_bleu_heldout": 60.0,
    "ceiling_asr_bleu_heldout": 80.0,
    "val_answer_accuracy_heldout": 85.0,
    "val_latency_s_median_heldout": 0.5,
    "val_barge_in_success_heldout": 95.0,
    "val_said_wer_heldout": 10.0,
}


def test_a_model_that_reaches_all():
    text, met = page({"metrics": GOOD, "about": {"asr": "whisper"}}, "scores.json")
    assert met
    assert "| ASR-BLEU / its ceiling | ≥ 0.7 | 0.75 |" in text
    assert "| response latency, median s | ≤ 0.69 | 0.50 |" in text
    assert "✗" not in text.split("\n\n", 2)[2]
    assert '"asr": "whisper"' in text


@pytest.mark.parametrize(
    ("figure", "value"),
    [("val_asr_bleu_heldout", 55.0), ("val_answer_accuracy_heldout", 79.9), ("val_latency_s_median_heldout", 0.7),
     ("val_barge_in_success_heldout", 94.0), ("val_said_wer_heldout", 15.1), ("val_said_wer_heldout", None),
     ("ceiling_asr_bleu_heldout", None), ("ceiling_asr_bleu_heldout", 0.0)],
)  # fmt: skip
def test_a_target_missed_or_not_measured(figure, value):
    _, met = page({"metrics": GOOD | {figure: value}}, "scores.json")
    assert not met
    assert table(GOOD | {figure: value}, ["heldout"]).count("✗") == 1


def test_without_the_set_that_counts_nothing_is_met():
    others = {name.removesuffix("heldout") + "heldout_wording": value for name, value in GOOD.items()}
    assert not page({"metrics": others}, "scores.json")[1]


def test_sets_stand_beside_each_other():
    voice = {name.removesuffix("heldout") + "heldout_voice": value for name, value in GOOD.items()}
    rows = table(GOOD | voice, ["heldout", "heldout_voice"]).splitlines()
    assert rows[0] == "|  | wanted | heldout | heldout_voice |"
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) > len(TARGETS)


def test_the_command(tmp_path):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"step": 3, "metrics": GOOD, "about": {}}))
    command = [sys.executable, "recipes/talk/results.py", str(scores), str(tmp_path / "results.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results.md").read_text().startswith("# Results of the talk recipe")
    scores.write_text(json.dumps({"metrics": {}}))
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_a_run_is_validated(in_talk, tmp_path):
    fit("talk", in_talk / "llm", "whole", "trainer.max_steps=1", *ONE_SET)
    out = Path("results.md")
    assert results.main(["runs/whole", str(out), "data.validation_ds.batch_size=3"]) == 1, "nothing was transcribed"
    assert "`hatch run recipe:results runs/whole results.md data.validation_ds.batch_size=3`, step 1" in out.read_text()
    scores = json.loads(next(Path("runs/whole/validations").rglob("scores.json")).read_text())
    text_bleu = scores["metrics"]["val_txt_bleu_heldout"]
    assert f"| text BLEU |  | {text_bleu:.2f} |" in out.read_text()


def test_a_folder_that_is_no_run(tmp_path, capsys):
    assert results.main([str(tmp_path), str(tmp_path / "results.md")]) == 2
    assert f"{tmp_path}/config.yaml: no such file; give a run's folder" in capsys.readouterr().err


def test_what_holds_no_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a run's folder"):
        read_scores(tmp_path / "scores.json")
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(ValueError, match="has no `metrics`"):
        read_scores(tmp_path / "scores.json")
