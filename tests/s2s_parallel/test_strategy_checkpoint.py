"""Runs that are saved on one mesh and go on upon another, through Lightning's Trainer."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from s2s_parallel.checkpoint import AtomicCheckpointIO, is_complete
from s2s_parallel.checkpoint_saver import CheckpointSaver
from s2s_parallel.distributed_checkpoint import FolderWriter
from s2s_parallel.strategy import MeshStrategy
from tests.s2s_parallel.toy import SaveAtEnd, StatefulLoader, Toy, make_trainer, train
from tests.s2s_parallel.trainers import fit_on_ranks, start_fit

pytestmark = pytest.mark.filterwarnings("ignore")

Mesh = dict[str, Any] | str | None
DP2: dict[str, Any] = {"data_parallel_size": 2}
TP2: dict[str, Any] = {"tensor_parallel_size": 2}
GRID: dict[str, Any] = {"data_parallel_size": 2, "tensor_parallel_size": 2}
COPIES: dict[str, Any] = {"data_parallel_size": 4, "replicate_size": 2}
ONE_FILE: dict[str, Any] = {**GRID, "save_distributed_checkpoint": False}
ONE: Mesh = None
DDP: Mesh = "ddp"


def world_size(mesh: Mesh) -> int:
    if isinstance(mesh, dict):
        return int(mesh.get("data_parallel_size", 1)) * int(mesh.get("tensor_parallel_size", 1))
    return 2 if mesh else 1


def run(mesh: Mesh, folder: Path, *args: object) -> dict[str, Any]:
    return fit_on_ranks(train, folder, mesh, *args, world_size=world_size(mesh))[0]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Six steps that nothing interrupts."""
    return run(DP2, tmp_path_factory.mktemp("whole"), 6)


PAIRS = [
    *[(DP2, after) for after in (DP2, TP2, GRID, COPIES, ONE, DDP)],
    *[(before, ONE) for before in (TP2, GRID, COPIES, ONE_FILE)],
    *[(TP2, GRID), (GRID, DP2), (COPIES, TP2)],
    *[(before, after) for before in (ONE, DDP, ONE_FILE) for after in (DP2, GRID)],
]
NAMES = {id(DP2): "dp2", id(TP2): "tp2", id(GRID): "2x2", id(COPIES): "hsdp", id(ONE_FILE): "2x2 to a file"}


def name_of(mesh: Mesh) -> str:
    return NAMES.get(id(mesh), mesh if isinstance(mesh, str) else "one process")


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=[f"{name_of(a)} then {name_of(b)}" for a, b in PAIRS])
def test_three_steps_on_one_mesh_and_three_on_another_are_six(tmp_path, whole, before, after):
    path = tmp_path / "checkpoints" / "last.ckpt"
    run(before, tmp_path / "before", 3, path)
    assert is_complete(path)
    assert path.is_dir() == (isinstance(before, dict) and before is not ONE_FILE)
    assert os.listdir(path.parent) == ["last.ckpt"]
    gone_on = run(after, tmp_path / "after", 6, None, path)
    # of sums in another order; a run that forgets its moments, or lr, differs by more than 1e-2
    assert gone_on["losses"] == pytest.approx(whole["losses"][3:], rel=1e-5)
    assert gone_on["rates"] == whole["rates"]
    assert (gone_on["count"], gone_on["given"]) == (6, 6), "the callback's state and the loader's"
    assert gone_on["tied"]
    assert gone_on["seen"]["groups"] == 2
    assert gone_on["seen"]["schedulers"] == 1
    assert {"net.embed_tokens.weight", "net.lm_head.weight", "net.scale"} <= set(gone_on["seen"]["names"])


def test_a_folder_is_read_by_one_process_as_the_file_that_it_would_have_saved(tmp_path):
    run(GRID, tmp_path / "grid", 3, tmp_path / "grid.ckpt")
    run(ONE, tmp_path / "one", 3, tmp_path / "one.ckpt")
    folder, file = (AtomicCheckpointIO().load_checkpoint(tmp_path / name) for name in ("grid.ckpt", "one.ckpt"))
    assert folder.keys() == file.keys()
    assert folder["loops"] == file["loops"]
    assert folder["lr_schedulers"] == file["lr_schedulers"]
    torch.testing.assert_close(folder["state_dict"], file["state_dict"])
    torch.testing.assert_close(folder["optimizer_states"], file["optimizer_states"])


# --- while training goes on ----------------------------------------------------------------------------------


class HeldWriter(FolderWriter):
    """Stops in the middle of a part until `gate` exists; tells so in `held`."""

    gate = Path()
    held = Path()

    def write_data(self, plan: Any, planner: Any) -> Any:
        result = super().write_data(plan, planner)
        self.held.touch()
        while not self.gate.exists():
            time.sleep(0.01)
        return result


class HeldStrategy(MeshStrategy):
    def _make_saver(self, group: Any) -> CheckpointSaver:
        return CheckpointSaver(group, HeldWriter)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path} in 60 s"
        time.sleep(0.01)


class SaveOnceThenTrain(Callback):
    """Saves at step 2; opens the writer's gate at step 5, by when the save has to be in the background."""

    def __init__(self, path: Path, gate: Path) -> None:
        self.path, self.gate = path, gate
        self.whole_at_step_5: bool | None = None

    def on_train_batch_end(self, trainer: Any, *args: object) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)
        if trainer.global_step == 5:
            self.whole_at_step_5 = self.path.exists()
            trainer.strategy.barrier()
            self.gate.touch()


def train_with_a_held_save(folder: Path) -> dict[str, Any]:
    HeldWriter.gate, HeldWriter.held = folder / "gate", folder / "held"
    callback = SaveOnceThenTrain(folder / "a.ckpt", HeldWriter.gate)
    trainer = make_trainer({"strategy": HeldStrategy(2), "data_parallel_size": 2}, 6, callbacks=[callback])
    trainer.fit(Toy(), StatefulLoader())
    return {"whole_at_step_5": callback.whole_at_step_5, "whole_at_end": is_complete(folder / "a.ckpt")}


def test_training_goes_on_during_a_save_which_holds_the_step_it_began_at(tmp_path, whole):
    result = fit_on_ranks(train_with_a_held_save, tmp_path / "run", tmp_path)[0]
    assert result == {"whole_at_step_5": False, "whole_at_end": True}
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["global_step"] == 2
    gone_on = run(ONE, tmp_path / "after", 6, None, tmp_path / "a.ckpt")
    assert gone_on["losses"] == pytest.approx(whole["losses"][2:], rel=1e-5)


class SaveEachStep(Callback):
    def __init__(self, path: Path, close_gate_at: int, gate: Path) -> None:
        self.path, self.close_gate_at, self.gate = path, close_gate_at, gate

    def on_train_batch_end(self, trainer: Any, *args: object) -> None:
        trainer.strategy._saver.wait()
        trainer.strategy.barrier()
        if trainer.global_step == self.close_gate_at:
            self.gate.unlink(missing_ok=True)
            HeldWriter.held.unlink(missing_ok=True)
        trainer.strategy.barrier()
        trainer.save_checkpoint(self.path)


def train_until_killed(folder: Path) -> None:
    HeldWriter.gate, HeldWriter.held = folder / "gate", folder / "held"
    HeldWriter.gate.touch()
    callback = SaveEachStep(folder / "last.ckpt", 4, HeldWriter.gate)
    trainer = make_trainer({"strategy": HeldStrategy(2), "data_parallel_size": 2}, 6, callbacks=[callback])
    trainer.fit(Toy(), StatefulLoader())


def test_kill_9_of_all_processes_amid_a_save_goes_on_from_the_save_before(tmp_path, whole):
    context = start_fit(train_until_killed, tmp_path / "run", tmp_path)
    closed = tmp_path / "gate"
    wait_for(tmp_path / ".last.ckpt.part" / "__0_0.distcp")
    while closed.exists():  # the save of step 4 begins
        time.sleep(0.01)
    wait_for(tmp_path / "held")
    for process in context.processes:
        os.kill(process.pid, signal.SIGKILL)
    for process in context.processes:
        process.join()
    assert (tmp_path / ".last.ckpt.part").exists(), "the kill came in the middle of the save"
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 3
    gone_on = run(TP2, tmp_path / "after", 6, tmp_path / "last.ckpt", tmp_path / "last.ckpt")
    assert gone_on["losses"] == pytest.approx(whole["losses"][3:], rel=1e-5)
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")["global_step"] == 6
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")], "what the kill left is cleared"


# --- errors --------------------------------------------------------------------------------------------------


class SaveAt(Callback):
    def __init__(self, paths: dict[int, Path]) -> None:
        self.paths = paths

    def on_train_batch_end(self, trainer: Any, *args: object) -> None:
        if trainer.global_step in self.paths:
            trainer.save_checkpoint(self.paths[trainer.global_step])


def said(mesh: dict[str, Any], max_steps: int, paths: dict[int, Path], load_from: Path | None = None) -> str:
    trainer = make_trainer(mesh, max_steps, callbacks=[SaveAt(paths)])
    try:
        trainer.fit(Toy(), StatefulLoader(), ckpt_path=load_from)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__} at step {trainer.global_step}: {error}"
    return "nothing"


@pytest.mark.parametrize(
    ("in_background", "max_steps", "steps", "step_told"),
    [(True, 6, (2, 4), 4), (True, 2, (2,), 2), (False, 6, (2, 4), 2)],
    ids=["at the next save", "at the end", "at once"],
)
def test_a_failed_save_is_told_on_every_process(tmp_path, in_background, max_steps, steps, step_told):
    """A file where the folder of checkpoints should be."""
    (tmp_path / "checkpoints").write_text("")
    paths = {step: tmp_path / ("checkpoints" if step == 2 else "good") / f"{step}.ckpt" for step in steps}
    mesh = {**DP2, "async_checkpoint": in_background}
    for told in fit_on_ranks(said, tmp_path / "run", mesh, max_steps, paths):
        assert told.startswith(f"CheckpointWriteError at step {step_told}: checkpoint not written to {paths[2]}")
        assert "\n" not in told


class Fails(Callback):
    def on_train_batch_end(self, trainer: Any, *args: object) -> None:
        if trainer.global_step == 3:
            raise ArithmeticError("the run's own error")


def failing_run(path: Path, log: Path) -> str:
    logging.basicConfig(filename=log, level=logging.ERROR, force=True)
    trainer = make_trainer(DP2, 6, callbacks=[SaveAt({2: path}), Fails()])
    try:
        trainer.fit(Toy(), StatefulLoader())
    except ArithmeticError as error:
        return str(error)
    return "nothing"


def test_an_error_in_training_waits_for_the_save_and_is_the_one_raised(tmp_path):
    told = fit_on_ranks(failing_run, tmp_path / "run", tmp_path / "a.ckpt", tmp_path / "log")
    assert told == ["the run's own error"] * 2
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["global_step"] == 2
    (tmp_path / "file").write_text("")
    told = fit_on_ranks(failing_run, tmp_path / "again", tmp_path / "file" / "a.ckpt", tmp_path / "log")
    assert told == ["the run's own error"] * 2
    assert "checkpoint not written to" in (tmp_path / "log").read_text()


class Wider(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.net.frozen = nn.Linear(6, 7)


class OneGroup(Toy):
    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.net.parameters(), foreach=False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lr_schedulers"] = []


def told_on_loading(mesh: Mesh, model: type[Toy], path: Path) -> str:
    try:
        make_trainer(mesh, 6).fit(model(), StatefulLoader(), ckpt_path=path)
    except (ValueError, OSError) as error:
        return str(error)
    return "nothing"


@pytest.mark.parametrize("saved_on", [DP2, ONE], ids=["folder", "file"])
def test_a_checkpoint_of_another_model_or_optimizer_is_told(tmp_path, saved_on):
    path = tmp_path / "a.ckpt"
    run(saved_on, tmp_path / "run", 3, path)
    for told in fit_on_ranks(told_on_loading, tmp_path / "wider", TP2, Wider, path):
        assert told.startswith(
            f"checkpoint {path} is of another model: other shapes (2): net.frozen.weight is [6, 6] in"
        )
        assert "\n" not in told
    for told in fit_on_ranks(told_on_loading, tmp_path / "groups", TP2, OneGroup, path):
        assert told.startswith("the checkpoint's optimizer has 2 parameter groups, this one 1")


def test_a_damaged_or_missing_checkpoint_is_told_on_every_process(tmp_path):
    path = tmp_path / "a.ckpt"
    for told in fit_on_ranks(told_on_loading, tmp_path / "missing", TP2, Toy, path):
        assert told == f"no checkpoint at {path}"
    run(DP2, tmp_path / "run", 3, path)
    (path / "__1_0.distcp").unlink()
    for told in fit_on_ranks(told_on_loading, tmp_path / "damaged", TP2, Toy, path):
        assert told.startswith(
            f"checkpoint {path} can't be read, it is damaged or no checkpoint (its part __1_0.distcp"
        )


def test_no_mesh_of_this_size_is_told_before_anything_starts():
    with pytest.raises(
        ValueError, match=r"data_parallel_size \(2\) × tensor_parallel_size \(2\) is 4, but the run has 2"
    ):
        MeshStrategy(2, 2).check_mesh(2)
    with pytest.raises(ValueError, match=r"replicate_size \(3\) must divide data_parallel_size \(4\)"):
        MeshStrategy(4, replicate_size=3).check_mesh(4)


# --- Lightning's callback ------------------------------------------------------------------------------------


def train_with_model_checkpoint(folder: Path, max_steps: int, load_from: Path | None) -> dict[str, Any]:
    best = ModelCheckpoint(
        folder, filename="{step}", monitor="val_loss", save_top_k=2, save_last=False, save_on_train_epoch_end=False
    )
    options = {"callbacks": [best, SaveAtEnd(folder / "last.ckpt")], "enable_checkpointing": True}
    trainer = make_trainer(DP2, max_steps, val_check_interval=1, limit_val_batches=1, **options)
    trainer.fit(Toy(), StatefulLoader(), StatefulLoader(), ckpt_path=load_from)
    kept = {"best": Path(best.best_model_path).name, "kept": sorted(Path(p).name for p in best.best_k_models)}
    trainer.validate(Toy(), StatefulLoader(), ckpt_path="best", verbose=False)
    return kept


def test_lightnings_model_checkpoint_keeps_the_best_folders_alone(tmp_path):
    folder = tmp_path / "checkpoints"
    result = fit_on_ranks(train_with_model_checkpoint, tmp_path / "run", folder, 4, None)[0]
    assert result == {"best": "step=4.ckpt", "kept": ["step=3.ckpt", "step=4.ckpt"]}
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step=3.ckpt", "step=4.ckpt"]
    assert all(is_complete(path) for path in folder.iterdir())
    result = fit_on_ranks(train_with_model_checkpoint, tmp_path / "again", folder, 6, folder / "step=4.ckpt")[0]
    assert result == {"best": "step=6.ckpt", "kept": ["step=5.ckpt", "step=6.ckpt"]}
    # step=4 is what the run went on from, which Lightning never removes; step=3 makes room
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step=4.ckpt", "step=5.ckpt", "step=6.ckpt"]
