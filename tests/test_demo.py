"""The shipped demo: its corpus, its codec, and the main job on them, cut short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_data import check_shar
from s2s_data.roles import Roles

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("split", "size"), [("train", 160), ("heldout", 16), ("heldout_voice", 16)])
def test_the_corpus_is_clean(split, size):
    assert check_shar(str(ROOT / "demo/corpus" / split), Roles.of(["user"], ["agent"])) == (size, [])


def fit(folder: Path, *overrides: str) -> str:
    command = [sys.executable, "-m", "s2s_train", "fit", "apps/train/conf/demo.yaml"]
    short = ["trainer.limit_train_batches=2", f"exp_manager.explicit_log_dir={folder}", "trainer.log_every_n_steps=1"]
    sets = [f"data.validation_ds.datasets.{name}.batch_size=1" for name in ("train_seen", "heldout", "heldout_voice")]
    run = subprocess.run(
        [*command, *short, *sets, "trainer.limit_val_batches=1", *overrides],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


def test_the_main_job_runs_and_goes_on_where_it_stopped(tmp_path):
    folder = tmp_path / "run"
    fit(folder, "trainer.max_steps=2")
    first = (folder / "metrics.jsonl").read_text()
    assert "resuming from" in fit(folder, "trainer.max_steps=4")
    text = (folder / "metrics.jsonl").read_text()
    assert text.startswith(first)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines if "train_loss" in line] == [1, 2, 3, 4]
    scores = [line for line in lines if "val_asr_bleu" in line]
    assert [line["step"] for line in scores] == [2, 4]
    for name in ("train_seen", "heldout", "heldout_voice"):
        assert {f"val_loss_{name}", f"val_asr_bleu_{name}", f"ceiling_asr_bleu_{name}"} <= scores[-1].keys()
    assert list((folder / "samples").rglob("*.wav"))
    assert "<html" in (folder / "report.html").read_text()
