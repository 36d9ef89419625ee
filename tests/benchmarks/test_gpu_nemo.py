"""The benchmark beside NeMo, in small on a CPU, in a process of its own as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_model_that_computes_another_loss_ends_with_an_error(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.gpu_nemo", "--size", "tiny", "--device", "cpu", "--only", "agree"]
    command += ["--model", "text_loss_weight=3.01", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "losses or gradients differ" in json.loads(out.read_text())["failed"][0]
