"""A run that hangs ends, on all processes, and leaves their stacks; one that goes on slowly doesn't end."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from s2s_train.run_folder import RunFolder
from s2s_train.watchdog import EXIT_HANG
from tests.s2s_parallel.trainers import start_fit
from tests.s2s_train.builders import metrics, run, write_config


class Sleeper(Callback):
    """Hangs rank 1 behind step 2."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            time.sleep(600)


class SlowValidation(Callback):
    """Takes its time over each batch of validation."""

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        time.sleep(1)


def _run_with_sleeper(path: Path) -> None:
    run(path, "run", callbacks=[Sleeper()])


def test_a_hung_rank_ends_every_process_with_its_stacks(folder, corpus, capfd):
    path = write_config(
        folder,
        corpus,
        trainer={"devices": 2, "strategy": "ddp", "limit_val_batches": 0},
        exp_manager={"exp_dir": str(folder / "runs"), "hang_timeout_s": 6},
    )
    context = start_fit(_run_with_sleeper, folder / "ranks", path)
    for process in context.processes:
        process.join(120)
    assert [process.exitcode for process in context.processes] == [EXIT_HANG, EXIT_HANG]
    stacks = [(folder / "runs" / "run" / f"hang-rank{rank}.txt").read_text() for rank in (0, 1)]
    assert "rank 1 hangs: for " in stacks[1]
    assert "in the step after 2 (exp_manager.hang_timeout_s is 6)" in stacks[1]
    assert "test_watchdog.py" in stacks[1]
    assert "in on_train_batch_start" in stacks[1]
    assert "backward" in stacks[0] or "all_reduce" in stacks[0] or "wait" in stacks[0]
    screen = capfd.readouterr().err
    for stack in stacks:
        assert stack.splitlines()[0] in screen
    assert "in on_train_batch_start" in screen


def test_validation_that_goes_on_is_no_hang(folder, corpus):
    path = write_config(folder, corpus)
    slow = ("exp_manager.hang_timeout_s=4", "data.validation_ds.batch_size=2", "trainer.max_steps=2")
    done = run(path, "run", *slow, callbacks=[SlowValidation()])  # 6 batches: 6 s
    assert "val_loss" in metrics(done)[-1]
    assert not list(done.path.glob("hang-*"))


def test_zero_watches_nothing(folder, corpus):
    done: RunFolder = run(write_config(folder, corpus), "run", "exp_manager.hang_timeout_s=0", "trainer.max_steps=1")
    assert metrics(done)[-1]["step"] == 1
