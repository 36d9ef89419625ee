"""The benchmark of whole runs, in small on a CPU, in a process of its own as a user starts it."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_fit import parse, run
from benchmarks.peer_size import SIZES

ROOT = Path(__file__).parents[2]
SMALL = ["--size", "tiny", "--device", "cpu", "--dialogues", "24", "--workers", "1"]


def test_a_short_run_of_the_app_tells_when_its_first_step_was_done(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.gpu_fit", *SMALL, "--runs", "cold", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    cold = json.loads(out.read_text())["cold"]
    assert 0 < cold["seconds_to_first_step"] < cold["whole_run_s"]
    told = re.fullmatch(
        r"first step after (.*) s: imports (.*), model (.*), set-up (.*), first batch (.*), step (.*)", cold["told"]
    )
    whole, *parts = map(float, told.groups())
    assert sum(parts) == pytest.approx(whole, abs=0.3)  # each is rounded
    assert all(part >= 0 for part in parts)


def test_a_run_that_the_app_refuses_ends_with_its_message(tmp_path):
    args = argparse.Namespace(device="cpu", workers=1, steps=5, limit_s=170.0, set=["trainer.max_stepz=1"])
    with pytest.raises(RuntimeError, match=r"fit ended with [1-9](.|\n)*max_stepz"):
        run(tmp_path, "cold", SIZES["tiny"], args)


def test_too_few_steps_for_a_steady_figure_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_fit", "--steps", "20"])
    with pytest.raises(SystemExit):
        parse()
    assert "--steps is 20: the first 20 are left out, so give at least 30" in capsys.readouterr().err
