"""Resume is an equation: a run cut in parts is the run that wasn't, in data, losses and metrics.jsonl."""

import json
import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.fit import RunStopped
from s2s_train.run_folder import RunFolder
from tests.s2s_train.builders import metrics, run, seen, write_config

# Where validation and the ends of Lightning's "epochs" fall, with the run cut after `cut` of 6 steps
LAYOUTS: dict[str, dict[str, Any]] = {
    "cut inside an epoch": {"limit_train_batches": 4, "val_check_interval": 2, "cut": 3},
    "cut at a validation": {"limit_train_batches": 4, "val_check_interval": 2, "cut": 2},
    "cut at an epoch's end": {"limit_train_batches": 3, "val_check_interval": 3, "cut": 3},
    "log steps apart": {"limit_train_batches": 3, "val_check_interval": 3, "cut": 3, "log_every_n_steps": 2},
    "no epoch ends": {"limit_train_batches": 100, "val_check_interval": 3, "cut": 4},
    "epochs without a length": {"limit_train_batches": None, "val_check_interval": 3, "cut": 3},
    "validation over epochs": {
        "limit_train_batches": 2,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "cut": 4,
    },
    "no validation": {"limit_train_batches": 4, "val_check_interval": 2, "limit_val_batches": 0, "cut": 3},
    "two batches a step": {
        "limit_train_batches": 8,
        "val_check_interval": 4,
        "accumulate_grad_batches": 2,
        "cut": 3,
    },
}


def final_weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)["state_dict"]
    return state


def assert_same_run(parts: RunFolder, uncut: RunFolder) -> None:
    assert seen(parts) == seen(uncut)
    assert metrics(parts) == metrics(uncut)
    for name, weight in final_weights(uncut).items():
        assert torch.equal(final_weights(parts)[name], weight), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_cut_in_two_equals_the_uncut_run(folder, corpus, layout):
    trainer = dict(LAYOUTS[layout])
    cut = trainer.pop("cut")
    path = write_config(folder, corpus, trainer=trainer)
    uncut = run(path, "uncut")
    run(path, "parts", f"trainer.max_steps={cut}")
    parts = run(path, "parts")
    every = trainer.get("log_every_n_steps", 1)
    logged = [line["step"] for line in metrics(uncut) if "train_loss" in line]
    assert logged == list(range(every, 7, every)), "no gap, no repeat"
    assert_same_run(parts, uncut)


def test_workers(folder, corpus):
    path = write_config(folder, corpus)
    uncut = run(path, "uncut", "data.train_ds.num_workers=2")
    for max_steps in (1, 6):
        parts = run(path, "parts", "data.train_ds.num_workers=2", f"trainer.max_steps={max_steps}")
    assert_same_run(parts, uncut)


class Die(Callback):
    """Ends the process as `kill -9` does, at a step, before or after its log line and checkpoint."""

    def __init__(self, step: int, moment: str) -> None:
        self.step = step
        self.moment = moment

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.moment == "before the next step" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.moment == "in validation" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.moment == "between validation's log and its checkpoint" and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def _run_and_die(path: Path, die: Die, overrides: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    run(path, "parts", *overrides, callbacks=[die])


@pytest.mark.parametrize(
    ("moment", "step", "saved_steps"),
    [
        ("before the next step", 1, []),
        ("before the next step", 3, [2]),
        ("before the next step", 5, [4]),
        ("in validation", 4, [2]),
        ("between validation's log and its checkpoint", 4, [2]),
    ],
)
def test_kill_9_loses_nothing_before_the_last_checkpoint_and_repeats_nothing(folder, corpus, moment, step, saved_steps):
    path = write_config(folder, corpus)
    uncut = run(path, "uncut")
    process = get_context("fork").Process(target=_run_and_die, args=(path, Die(step, moment), ()))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    killed = RunFolder(folder / "runs" / "parts")
    assert killed.last_checkpoint.exists() == bool(saved_steps)
    if saved_steps:
        state = AtomicCheckpointIO().load_checkpoint(killed.last_checkpoint)
        assert state["global_step"] == saved_steps[-1]
        assert max(line["step"] for line in metrics(killed)) > saved_steps[-1], "lines to drop"
    assert_same_run(run(path, "parts"), uncut)


class Signal(Callback):
    """Sends this process a signal behind step 3."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), self.number)


def _run_until_stopped(path: Path, callback: Callback, said: Path) -> None:
    torch.set_num_threads(1)
    try:
        run(path, "parts", callbacks=[callback])
    except RunStopped as stopped:
        said.write_text(str(stopped))
        os._exit(stopped.exit_code)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_its_exit_code_and_says_how_to_go_on(folder, corpus, number, exit_code):
    path = write_config(folder, corpus)
    uncut = run(path, "uncut")
    said = folder / "said.txt"
    process = get_context("fork").Process(target=_run_until_stopped, args=(path, Signal(number), said))
    process.start()
    process.join(60)
    assert process.exitcode == exit_code
    assert "stopped at step 3; the same command goes on from" in said.read_text()
    assert "last.ckpt" in said.read_text()
    assert_same_run(run(path, "parts"), uncut)


def test_a_damaged_last_checkpoint_is_passed_over(folder, corpus):
    path = write_config(folder, corpus)
    uncut = run(path, "uncut")
    parts = run(path, "parts", "trainer.max_steps=4")
    parts.last_checkpoint.write_bytes(parts.last_checkpoint.read_bytes()[:-50])
    assert_same_run(run(path, "parts"), uncut)


def test_a_finished_run_started_again_changes_nothing(folder, corpus):
    path = write_config(folder, corpus)
    first = run(path, "run")
    before = first.metrics.read_text()
    again = run(path, "run")
    assert again.metrics.read_text() == before


def test_every_n_train_steps_saves_between_validations(folder, corpus):
    path = write_config(folder, corpus, trainer={"limit_train_batches": 100, "val_check_interval": 100})
    uncut = run(path, "uncut")
    die = Die(5, "before the next step")
    overrides = ("exp_manager.checkpoint_callback_params.every_n_train_steps=2",)
    process = get_context("fork").Process(target=_run_and_die, args=(path, die, overrides))
    process.start()
    process.join(60)
    killed = RunFolder(folder / "runs" / "parts")
    assert AtomicCheckpointIO().load_checkpoint(killed.last_checkpoint)["global_step"] == 4
    assert_same_run(run(path, "parts", *overrides), uncut)


def test_time_goes_on_over_parts(folder, corpus):
    path = write_config(folder, corpus)
    run(path, "run", "trainer.max_steps=3")
    after = run(path, "run")
    times = [json.loads(line)["time_s"] for line in after.metrics.read_text().splitlines()]
    assert times == sorted(times)
