"""The benchmark beside NeMo, in small on a CPU, in a process of its own as a user starts it."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.comparison import Comparison
from benchmarks.gpu_report import Report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    out = tmp_path_factory.mktemp("benchmark") / "out.json"
    command = [sys.executable, "-m", "benchmarks.gpu_nemo", "--size", "tiny", "--device", "cpu", "--only", "agree"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    return done, json.loads(out.read_text())


def test_losses_gradients_codes_and_answers_of_both_models_agree(agreed):
    done, shown = agreed
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row["figure"]: row for row in shown["agreement"]["rows"]}
    assert rows["float32 loss"]["ours"] > 10  # of noise that nothing has learned
    assert rows["float32 loss"]["difference"] < 1e-5
    assert rows["float32 gradient_norm"]["difference"] < 1e-4
    assert shown["ours"]["agree"]["codes equal"] == 1
    assert shown["ours"]["agree"]["text equal"] == 1
    assert "| small batch | float32 loss |" in done.stdout


@pytest.mark.parametrize(("ours", "failed"), [(5.0001, False), (5.001, True)])
def test_another_loss_lets_the_run_fail(ours, failed, tmp_path):
    report = Report(tmp_path / "out.json")
    for who, loss in (("nemo", 5.0), ("ours", ours)):
        report.put({"loss": loss, "gradient_norm": 1.0}, who, "agree")
    args = argparse.Namespace(size="tiny", device="cpu", dtype="float32", only=["agree"], who=["nemo", "ours"])
    Comparison(args, report, tmp_path)._check_agreement()
    assert bool(report.failed) == failed
    assert json.loads((tmp_path / "out.json").read_text())["agreement"]["agree"] is not failed
