"""A run that is asked to stop: it saves the step it is in, on all processes, and goes on as if it never had."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.config import load_config
from s2s_train.fit import RunStopped, fit
from s2s_train.run_folder import RunFolder
from tests.s2s_parallel.trainers import fit_on_ranks
from tests.s2s_train.builders import TinyModel, metrics, run, write_config
from tests.s2s_train.test_resume import Die, assert_same_run, final_weights

ROOT = Path(__file__).parents[2]
TRAINING, VALIDATING = "on_train_batch_end", "on_validation_batch_end"


class Signals(Callback):
    """Sends this process signals in a hook at a step."""

    def __init__(self, hook: str, step: int, *numbers: int, rank: int | None = None) -> None:
        self._step, self._numbers, self._rank = step, numbers, rank
        setattr(self, hook, self._send)

    def _send(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step and self._rank in (None, trainer.global_rank):
            numbers, self._numbers = self._numbers, ()
            for index, number in enumerate(numbers):
                time.sleep(1.2 * index)  # at once it would be one Ctrl-C
                os.kill(os.getpid(), number)


def _run_until_stopped(path: Path, callback: Callback, said: Path, overrides: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    try:
        run(path, "parts", *overrides, callbacks=[callback])
    except RunStopped as stopped:
        said.write_text(str(stopped))
        os._exit(stopped.exit_code)


def stopped_by(path: Path, callback: Callback, *overrides: str) -> tuple[int | None, str]:
    """Exit code and last words of a run with `callback`, in a process of its own."""
    said = path.parent / "said.txt"
    said.unlink(missing_ok=True)
    process = get_context("fork").Process(target=_run_until_stopped, args=(path, callback, said, overrides))
    process.start()
    process.join(60)
    return process.exitcode, said.read_text() if said.exists() else ""


def saved_step(folder: RunFolder) -> int:
    step: int = AtomicCheckpointIO().load_checkpoint(folder.last_checkpoint)["global_step"]
    return step


PARTS = Path("runs") / "parts"


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)], ids=str
)
def test_a_signal_saves_the_step_it_came_in(folder, corpus, number, exit_code):
    path = write_config(folder, corpus, trainer={"limit_train_batches": 100, "val_check_interval": 100})
    uncut = run(path, "uncut")
    code, said = stopped_by(path, Signals(TRAINING, 3, number))
    assert code == exit_code
    assert f"{number.name}: stopped at step 3; the same command goes on from" in said
    assert saved_step(RunFolder(folder / PARTS)) == 3
    assert_same_run(run(path, "parts"), uncut)


@pytest.mark.parametrize("hook", [TRAINING, VALIDATING])
@pytest.mark.parametrize(
    "trainer",
    [
        pytest.param({"limit_train_batches": 6, "val_check_interval": 2}, id="in an epoch"),
        pytest.param({"limit_train_batches": 2, "val_check_interval": 2}, id="at an epoch's end"),
        pytest.param({"limit_train_batches": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}, id="over"),
        pytest.param(
            {"limit_train_batches": 8, "val_check_interval": 4, "accumulate_grad_batches": 2}, id="two batches a step"
        ),
    ],
)
def test_validation_that_is_cut_logs_nothing_and_is_done_anew(folder, corpus, trainer, hook):
    path = write_config(folder, corpus, trainer=trainer)
    uncut = run(path, "uncut")
    for step in (4, 6):
        assert stopped_by(path, Signals(hook, step, signal.SIGTERM))[0] == 143
        cut = RunFolder(folder / PARTS)
        assert saved_step(cut) == step
        assert max(line["step"] for line in metrics(cut) if "val_loss" in line) == step - 2
    assert_same_run(run(path, "parts"), uncut)
    assert [line["step"] for line in metrics(uncut) if "val_loss" in line] == [2, 4, 6]


def test_validation_done_anew_and_killed_before_it_is_saved_is_logged_once(folder, corpus):
    path = write_config(folder, corpus)
    uncut = run(path, "uncut")
    assert stopped_by(path, Signals(VALIDATING, 4, signal.SIGTERM))[0] == 143
    assert stopped_by(path, Die(4, "between validation's log and its checkpoint"))[0] == -signal.SIGKILL
    assert [line["step"] for line in metrics(RunFolder(folder / PARTS)) if "val_loss" in line] == [2, 4]
    assert_same_run(run(path, "parts"), uncut)


def test_a_signal_in_the_midst_of_accumulation_waits_for_the_step(folder, corpus):
    trainer = {"limit_train_batches": 300, "val_check_interval": 300, "accumulate_grad_batches": 3}
    path = write_config(folder, corpus, trainer=trainer)
    uncut = run(path, "uncut")
    assert stopped_by(path, Signals("on_train_batch_start", 2, signal.SIGTERM))[0] == 143
    assert saved_step(RunFolder(folder / PARTS)) == 3
    assert_same_run(run(path, "parts"), uncut)


def test_a_signal_in_the_last_step_lets_the_run_end(folder, corpus):
    path = write_config(folder, corpus, trainer={"limit_val_batches": 0})
    assert stopped_by(path, Signals(TRAINING, 6, signal.SIGTERM)) == (0, "")
    assert saved_step(RunFolder(folder / PARTS)) == 6


def test_a_second_ctrl_c_ends_the_run_at_once(folder, corpus):
    path = write_config(folder, corpus)
    assert stopped_by(path, Signals(TRAINING, 3, signal.SIGINT, signal.SIGINT))[0] == -signal.SIGINT
    assert saved_step(RunFolder(folder / PARTS)) == 2


def test_time_is_up_at_any_moment_and_the_parts_equal_the_uncut_run(folder, corpus):
    path = write_config(folder, corpus, trainer={"log_every_n_steps": 2})
    uncut = run(path, "uncut")
    for step in range(1, 7):  # it does one step whatever the time, and first the validation that was cut
        parts = run(path, "parts", "exp_manager.max_time_per_run=00:00:00:00")
        assert saved_step(parts) == step
    assert_same_run(run(path, "parts"), uncut)


def started_command(folder: Path, corpus: str, **trainer: Any) -> subprocess.Popen[str]:
    """A run as a user starts it, in a session of its own, when it has made some steps."""
    endless = {"max_steps": 100000, "limit_train_batches": 1000, "val_check_interval": 1000}
    path = write_config(folder, corpus, trainer=endless | trainer)
    code = (
        "import sys, pathlib, tests.s2s_train.builders as b\n"
        "from s2s_train.fit import RunStopped\n"
        "try: b.run(pathlib.Path(sys.argv[1]), 'parts', 'data.train_ds.num_workers=2')\n"
        "except RunStopped as stopped: sys.exit(stopped.exit_code)"
    )
    (folder / "train.py").write_text(code)
    command = [sys.executable, "train.py", str(path)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen(command, start_new_session=True, cwd=folder, env=env, text=True)
    run_folder = RunFolder(folder / PARTS)
    while not run_folder.metrics.exists() or len(metrics(run_folder)) < 3:
        assert process.poll() is None
        time.sleep(0.1)
    return process


def test_a_scheduler_signals_data_workers_too(folder, corpus):
    process = started_command(folder, corpus)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 143
    parts = RunFolder(folder / PARTS)
    assert saved_step(parts) == metrics(parts)[-1]["step"]
    path = folder / "tiny.yaml"
    uncut = run(path, "uncut", f"trainer.max_steps={saved_step(parts)}", "data.train_ds.num_workers=2")
    for name, weight in final_weights(uncut).items():
        assert torch.equal(final_weights(parts)[name], weight)


def test_processes_that_lightning_started_stop_when_the_first_is_told(folder, corpus):
    process = started_command(folder, corpus, devices=2, strategy="ddp")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    parts = RunFolder(folder / PARTS)
    assert saved_step(parts) == metrics(parts)[-1]["step"]


class Sharded(TinyModel):
    """The tiny model as MeshStrategy wants it: its one weight is on each process, of which each has other data."""

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            torch.distributed.fsdp.fully_shard(self.linear, mesh=self.device_mesh["data_parallel"])


def _run_on_mesh(path: Path, name: str, callbacks: list[Callback]) -> tuple[int, str]:
    try:
        fit(load_config(path, [f"name={name}"]), Sharded, lambda cfg, folder: callbacks)
    except RunStopped as stopped:
        return stopped.exit_code, str(stopped)
    return 0, ""


@pytest.mark.parametrize("strategy", ["ddp", "s2s_parallel.strategy.MeshStrategy"])
@pytest.mark.parametrize("hook", [TRAINING, VALIDATING])
def test_all_processes_stop_at_one_step_whichever_is_told(folder, corpus, strategy, hook):
    trainer: dict[str, Any] = {"devices": 2, "strategy": strategy if strategy == "ddp" else {"_target_": strategy}}
    path = write_config(folder, corpus, trainer=trainer | {"limit_train_batches": 100, "val_check_interval": 3})
    fit_on_ranks(_run_on_mesh, folder / "ranks", path, "uncut", [])
    ended = fit_on_ranks(_run_on_mesh, folder / "ranks", path, "parts", [Signals(hook, 3, signal.SIGTERM, rank=1)])
    assert [code for code, _ in ended] == [143, 143]
    assert ended[0] == ended[1]
    parts, uncut = RunFolder(folder / PARTS), RunFolder(folder / "runs" / "uncut")
    assert saved_step(parts) in (3, 4)
    fit_on_ranks(_run_on_mesh, folder / "ranks", path, "parts", [])
    assert metrics(parts) == metrics(uncut)


def _write_commands(folder: Path, state: str) -> None:
    """SLURM's commands as a job finds them, which write down what they were asked."""
    folder.mkdir()
    for name, answer in (("squeue", f"echo {state}"), ("scontrol", 'echo "$@" >> "$(dirname "$0")/asked"')):
        (folder / name).write_text(f"#!/bin/sh\n{answer}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("state", "number", "exit_code", "asked"),
    [
        ("RUNNING", signal.SIGUSR1, 0, "requeue 7_2\n"),
        ("RUNNING", signal.SIGTERM, 0, "requeue 7_2\n"),
        ("COMPLETING", signal.SIGTERM, 143, ""),
        ("RUNNING", signal.SIGINT, 130, ""),
        ("RUNNING; kill -TERM $PPID; sleep 1", signal.SIGTERM, 0, "requeue 7_2\n"),  # a second one, amid requeueing
    ],
)
def test_a_slurm_job_is_requeued_unless_someone_ended_it(folder, corpus, monkeypatch, state, number, exit_code, asked):
    _write_commands(folder / "bin", state)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "9"), ("ARRAY_JOB_ID", "7"), ("ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    path = write_config(folder, corpus)
    code, said = stopped_by(path, Signals(TRAINING, 3, number))
    assert code == exit_code
    found = folder / "bin" / "asked"
    assert (found.read_text() if found.exists() else "") == asked
    assert ("job 7_2 is requeued" in said) == bool(asked)
    assert ("its state is COMPLETING" in said) == (state == "COMPLETING")
    assert saved_step(RunFolder(folder / PARTS)) == 3


@pytest.mark.parametrize(
    ("override", "goes_on"),
    [
        ("exp_manager.create_checkpoint_callback=false", "at step 0, as nothing was saved yet"),
        ("exp_manager.checkpoint_callback_params.save_last=false", "checkpoints/step=2.ckpt, its last checkpoint"),
    ],
)
def test_a_job_that_does_not_save_where_it_stops_is_not_requeued(folder, corpus, monkeypatch, override, goes_on):
    _write_commands(folder / "bin", "RUNNING")
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    code, said = stopped_by(write_config(folder, corpus), Signals(TRAINING, 3, signal.SIGTERM), override)
    assert code == 143
    assert f"{goes_on}; it isn't requeued, as last.ckpt is turned off" in said
    assert not (folder / "bin" / "asked").exists()


def test_a_job_that_cannot_be_requeued_says_why(folder, corpus, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("PATH", str(folder))
    path = write_config(folder, corpus)
    code, said = stopped_by(path, Signals(TRAINING, 3, signal.SIGTERM))
    assert code == 143
    assert "job 9 isn't requeued: squeue: " in said
    code, said = stopped_by(path, Signals(TRAINING, 5, signal.SIGTERM), "exp_manager.requeue=false")
    assert code == 143
    assert "requeue" not in said


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("exp_manager.requeue=true", r"exp_manager\.requeue is true, but SLURM_JOB_ID isn't set"),
        ("exp_manager.requeue=always", r"exp_manager\.requeue is 'always': use auto, true or false"),
        ("exp_manager.hang_timeout_s=-1", r"exp_manager\.hang_timeout_s is -1: give seconds, or 0"),
    ],
)
def test_what_a_user_can_mend_is_said(folder, corpus, override, told):
    with pytest.raises(ValueError, match=told):
        run(write_config(folder, corpus), "run", override)
