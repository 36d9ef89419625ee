"""Folders that several processes write: whole or not there, and read without running code."""

import errno
import io
import os
import pickle
import resource
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

from s2s_parallel.atomic_file import CheckpointWriteError
from s2s_parallel.checkpoint import AtomicCheckpointIO, CheckpointReadError, is_complete
from s2s_parallel.checkpoint_folder import put_in_place, recover
from s2s_parallel.checkpoint_readers import TensorsReader
from s2s_parallel.checkpoint_saver import CheckpointSaver
from s2s_parallel.distributed_checkpoint import FolderWriter
from s2s_parallel.optimizer_names import name_state, names_by_group, number_state
from s2s_parallel.sharded_loading import ShardedLoader
from tests.s2s_model.processes import run_on_ranks
from tests.s2s_parallel.test_checkpoint import NotPlain, forked

IO = AtomicCheckpointIO()
pytestmark = pytest.mark.filterwarnings("ignore")


def rows(value: float, num_rows: int = 5) -> torch.Tensor:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return distribute_tensor(torch.full((num_rows, 2), value), mesh, [Shard(0)])


def save(path: Path, value: float, num_rows: int = 5, in_background: bool = False, **more: object) -> CheckpointSaver:
    saver = CheckpointSaver(dist.new_group(backend="gloo"))
    checkpoint = {"state_dict": {"w": rows(value, num_rows), "whole": torch.tensor(value)}, **more}
    saver.save(checkpoint, path, in_background=in_background)
    return saver


def save_on_rank(rank: int, path: Path, *values: float) -> None:
    for value in values:
        save(path, value, global_step=int(value), nested={"list": [1, "a", None, 2.5]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "last.ckpt"
    run_on_ranks(save_on_rank, tmp_path, path, 3.0)
    return path


def value_at(path: Path) -> float:
    state = IO.load_checkpoint(path)["state_dict"]
    assert torch.equal(state["w"], torch.full_like(state["w"], float(state["whole"])))
    return float(state["whole"])


def test_round_trip_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    run_on_ranks(save_on_rank, tmp_path, path, 1.0, 2.0)
    assert value_at(path) == 2.0
    checkpoint = IO.load_checkpoint(path)
    assert (checkpoint["global_step"], checkpoint["nested"]) == (2, {"list": [1, "a", None, 2.5]})
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert is_complete(path)


# --- kills ---------------------------------------------------------------------------------------------------


def put_and_die_after(renames: int, new: Path, path: Path) -> None:
    """Killed as soon as the system has done so many renames of `put_in_place`."""
    rename = Path.rename
    done = 0

    def rename_and_die(self: Path, target: Path) -> Path:
        nonlocal done
        result = rename(self, target)
        done += 1
        if done == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.rename = rename_and_die  # type: ignore[method-assign, assignment]  # in the child alone
    put_in_place(new, path)


@pytest.mark.parametrize(("renames", "value"), [(1, 3.0), (2, 4.0)])
def test_kill_9_between_the_renames_loses_nothing(tmp_path, folder, renames, value):
    new = folder.with_name(".last.ckpt.part")
    run_on_ranks(save_on_rank, tmp_path, tmp_path / "new.ckpt", 4.0)
    (tmp_path / "new.ckpt").rename(new)
    process = forked(put_and_die_after, renames, new, folder)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert folder.exists() == (renames == 2)
    assert is_complete(folder)
    assert value_at(folder) == value
    recover(folder)
    assert folder.exists()
    assert value_at(folder) == value
    recover(folder)
    run_on_ranks(save_on_rank, tmp_path, folder, 5.0)
    assert value_at(folder) == 5.0
    assert os.listdir(folder.parent) == ["last.ckpt"]


def test_a_save_after_such_a_kill_keeps_the_old_one_until_it_is_whole(tmp_path, folder):
    """A reader that puts nothing back, and a next save that is killed at the same place again."""
    for value in (4.0, 5.0):
        run_on_ranks(save_on_rank, tmp_path, tmp_path / "new.ckpt", value)
        (tmp_path / "new.ckpt").rename(folder.with_name(".last.ckpt.part"))
        forked(put_and_die_after, 1, folder.with_name(".last.ckpt.part"), folder).join()
        shutil.rmtree(folder.with_name(".last.ckpt.part"), ignore_errors=True)
        assert is_complete(folder)
    assert value_at(folder) in (3.0, 5.0)


class StoppedWriter(FolderWriter):
    """Rank 1 stops halfway through its part: it waits to read from a pipe into which nobody writes."""

    pipe = Path()

    def write_data(self, plan: Any, planner: Any) -> Any:
        result = super().write_data(plan, planner)
        if dist.get_rank() == 1:
            part = next(Path(self.path).glob("__1_*"))
            os.truncate(part, part.stat().st_size // 2)
            self.pipe.open("rb").read()
        return result


def save_and_stop(rank: int, path: Path, pipe: Path, in_background: bool) -> None:
    StoppedWriter.pipe = pipe
    saver = CheckpointSaver(dist.new_group(backend="gloo"), StoppedWriter)
    saver.save({"state_dict": {"w": rows(9.0)}}, path, in_background=in_background)
    saver.wait()


def in_a_group_of_its_own(folder: Path, path: Path, pipe: Path, in_background: bool) -> None:
    os.setpgid(0, 0)
    run_on_ranks(save_and_stop, folder, path, pipe, in_background)


@pytest.mark.parametrize("in_background", [True, False], ids=["background", "at once"])
def test_kill_9_of_a_process_group_in_the_middle_of_a_save(tmp_path, folder, in_background):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "killed").mkdir()
    process = forked(in_a_group_of_its_own, tmp_path / "killed", folder, pipe, in_background)
    with pipe.open("wb"):  # returns when rank 1 has opened the other end: it stands in the middle of its part
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert folder.with_name(".last.ckpt.part").exists(), "the kill came in the middle of the save"
    assert is_complete(folder)
    assert value_at(folder) == 3.0
    run_on_ranks(save_on_rank, tmp_path, folder, 4.0)
    assert value_at(folder) == 4.0
    assert os.listdir(folder.parent) == ["last.ckpt"], "the next save clears what the killed one left"


def save_for_ever(rank: int, folder: Path, path: Path) -> None:
    saver = CheckpointSaver(dist.new_group(backend="gloo"))
    for step in range(1, 100_000):
        value = float(step)
        saver.save({"state_dict": {"w": rows(value), "whole": torch.tensor(value)}}, path, in_background=True)
        if rank == 0:
            (folder / "begun").write_text(str(step))


def for_ever_in_a_group(folder: Path, path: Path) -> None:
    os.setpgid(0, 0)
    run_on_ranks(save_for_ever, folder, folder, path)


@pytest.mark.parametrize("delay_ms", [0, 5, 11])
def test_kill_9_at_any_moment_of_real_saves_leaves_a_loadable_one(tmp_path, delay_ms):
    path, begun = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "begun"
    process = forked(for_ever_in_a_group, tmp_path, path)
    deadline = time.monotonic() + 60
    while not (begun.exists() and int(begun.read_text() or 0) > 3):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    time.sleep(delay_ms / 1000)
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    assert is_complete(path)
    assert value_at(path) >= int(begun.read_text() or 4) - 1


# --- files and folders under one name ------------------------------------------------------------------------


def test_a_file_takes_the_place_of_a_folder_and_the_reverse(tmp_path, folder):
    IO.save_checkpoint({"state_dict": {"w": torch.ones(2), "whole": torch.ones(())}}, folder)
    assert folder.is_file()
    assert value_at(folder) == 1.0
    run_on_ranks(save_on_rank, tmp_path, folder, 6.0)
    assert folder.is_dir()
    assert value_at(folder) == 6.0
    assert os.listdir(folder.parent) == ["last.ckpt"]


def test_a_file_that_can_not_be_written_leaves_the_folder(folder):
    with pytest.raises(Exception, match="pickle"):
        IO.save_checkpoint({"w": lambda: None}, folder)
    assert value_at(folder) == 3.0
    assert os.listdir(folder.parent) == ["last.ckpt"]


def test_a_folder_is_removed_with_what_kills_left_beside_it(folder):
    shutil.copytree(folder, folder.with_name(".last.ckpt.old"))
    shutil.copytree(folder, folder.with_name(".last.ckpt.part"))
    IO.remove_checkpoint(folder)
    assert os.listdir(folder.parent) == []
    IO.remove_checkpoint(folder)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*last\.ckpt"):
        IO.load_checkpoint(folder)


# --- errors --------------------------------------------------------------------------------------------------


def save_with_small_files(rank: int, path: Path, in_background: bool) -> tuple[int | None, str]:
    """Past 64 KiB the system itself refuses rank 1's write (EFBIG), as a full disk does (ENOSPC)."""
    saver = save(path, 3.0)
    if rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    try:
        saver.save({"state_dict": {"w": rows(4.0, 50_000)}}, path, in_background=in_background)
        saver.wait()
    except CheckpointWriteError as error:
        saver.wait()  # it is raised once
        told = error.errno, str(error)
    else:
        told = None, "nothing"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return told


@pytest.mark.parametrize("in_background", [True, False], ids=["background", "at once"])
def test_a_write_refused_on_one_process_is_told_on_all_and_keeps_the_checkpoint(tmp_path, in_background):
    path = tmp_path / "checkpoints" / "last.ckpt"
    for number, told in run_on_ranks(save_with_small_files, tmp_path, path, in_background):
        assert number == errno.EFBIG
        for part in (f"checkpoint not written to {path}", "File too large", "bytes free", "to resume"):
            assert part in told
        assert "\n" not in told
    assert value_at(path) == 3.0
    assert os.listdir(path.parent) == ["last.ckpt"]


def remove_during_saves(rank: int, folder: Path) -> list[list[str]]:
    """What lies in `folder` after each step."""
    saver = save(folder / "a", 1.0)
    seen = []
    for name, older in (("b", "a"), ("gone/file/c", "b")):
        saver.save({"state_dict": {"w": rows(2.0)}}, folder / name, in_background=True)
        if rank == 0:
            saver.when_saved(partial(IO.remove_checkpoint, folder / older))
        try:
            saver.wait()
        except CheckpointWriteError:
            seen.append(["refused"])
        dist.barrier()
        seen.append(sorted(os.listdir(folder)))
    return seen


def test_a_removal_waits_for_the_save_and_is_dropped_if_that_fails(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "gone").mkdir(parents=True)
    (folder / "gone" / "file").write_text("")
    seen = run_on_ranks(remove_during_saves, tmp_path, folder)[0]
    assert seen == [["b", "gone"], ["refused"], ["b", "gone"]]


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "__1_0.distcp").unlink(), r"its part __1_0\.distcp is missing"),
        (lambda folder: os.truncate(folder / "__0_0.distcp", 100), r"its part __0_0\.distcp has 100 bytes of [\d,]+\)"),
        (lambda folder: (folder / ".metadata").unlink(), r"it has no \.metadata"),
        (lambda folder: (folder / ".metadata").write_bytes(b"\x80\x04 text"), r"\.metadata: "),
        (lambda folder: os.truncate(folder / ".metadata", 200), r"\.metadata: "),
        (lambda folder: (folder / "meta.pt").unlink(), r"it has no meta\.pt"),
    ],
    ids=["a part is missing", "a part is cut", "no list", "another list", "a cut list", "no meta.pt"],
)
def test_a_damaged_folder_is_named(folder, damage, told):
    damage(folder)
    assert not is_complete(folder)
    with pytest.raises(CheckpointReadError, match=rf"last\.ckpt can't be read, it is damaged.*{told}") as caught:
        IO.load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_meta_is_named(folder):
    os.truncate(folder / "meta.pt", 300)
    assert not is_complete(folder)
    with pytest.raises(CheckpointReadError, match=r"last\.ckpt/meta\.pt can't be read, it is damaged"):
        IO.load_checkpoint(folder)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["TRACE_OF_CODE"],)


def test_a_list_of_tensors_that_would_run_code_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACE_OF_CODE", str(tmp_path / "it ran"))
    file = io.BytesIO()
    pickle.dump(RunsCode(), file)
    (folder / ".metadata").write_bytes(file.getvalue())
    with pytest.raises(CheckpointReadError, match=r"it asks for \w+\.mkdir, which no list of tensors has"):
        AtomicCheckpointIO(trusted=True).load_checkpoint(folder)
    assert not (tmp_path / "it ran").exists()
    torch.save({"hyper": NotPlain()}, folder / "meta.pt")
    assert not is_complete(folder)


def test_objects_in_meta_are_refused_unless_trusted(folder):
    torch.save({"hyper": NotPlain()}, folder / "meta.pt")
    with pytest.raises(CheckpointReadError, match=r"holds more than tensors.*trusted=True"):
        IO.load_checkpoint(folder)
    assert isinstance(AtomicCheckpointIO(trusted=True).load_checkpoint(folder)["hyper"], NotPlain)


def save_in_pieces(rank: int, path: Path) -> str:
    """As fused matrices are shared: of each half, a half."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
    whole = torch.arange(16.0).view(8, 2)
    mine = whole[[2 * rank, 2 * rank + 1, 4 + 2 * rank, 5 + 2 * rank]]
    fused = DTensor.from_local(mine, mesh, [_StridedShard(0, split_factor=2)], run_check=False)
    try:
        CheckpointSaver(dist.new_group(backend="gloo")).save({"state_dict": {"w": fused}}, path, in_background=False)
    except ValueError as error:
        return str(error)
    return "nothing"


def test_a_tensor_shared_in_several_pieces_is_refused(tmp_path):
    """torch would write it as if each process had one piece: in silence, rows change places."""
    for told in run_on_ranks(save_in_pieces, tmp_path, tmp_path / "last.ckpt"):
        assert told.startswith("state_dict.w is shared between devices in several pieces each")


# --- names of optimizer states -------------------------------------------------------------------------------


def tied_model() -> nn.ModuleDict:
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False), "c": nn.Linear(3, 2)})
    model["b"].weight = model["a"].weight
    return model


def trained(model: nn.Module) -> torch.optim.AdamW:
    model["c"].bias.requires_grad_(False)  # type: ignore[index]
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [parameters["c.weight"], parameters["c.bias"]], "lr": 0.1},
        {"params": [parameters["a.weight"]]},
    ]
    optimizer = torch.optim.AdamW(groups)
    model["c"](model["b"](torch.ones(1, 3))).sum().backward()  # type: ignore[index]
    optimizer.step()
    return optimizer


def test_numbers_to_names_and_back():
    model = tied_model()
    optimizer = trained(model)
    names = names_by_group(optimizer, model)
    assert names == [["c.weight", "c.bias"], ["a.weight"]]
    named = name_state(optimizer.state_dict(), names)
    assert sorted(named["state"]) == ["a.weight", "c.weight"], "what is frozen has no state"
    back = number_state(named)
    assert back["state"].keys() == {0, 2}
    assert back["param_groups"] == optimizer.state_dict()["param_groups"]
    with pytest.raises(ValueError, match=r"parameter group 0 has 2 parameters in the checkpoint, 1 in this optimizer"):
        name_state(optimizer.state_dict(), [["c.weight"], ["a.weight"]])


def load_under_another_name(rank: int) -> list[float]:
    """The checkpoint knows the tied matrix and its moments as `b.weight` alone."""
    model = tied_model()
    optimizer = trained(model)
    stored = {f"state_dict.{name}": torch.full_like(value, 5.0) for name, value in model.state_dict().items()}
    del stored["state_dict.a.weight"]
    stored |= {f"optimizer_0.state.b.weight.{key}": torch.full((3, 3), 6.0) for key in ("exp_avg", "exp_avg_sq")}
    stored |= {"optimizer_0.state.b.weight.step": torch.tensor(7.0)}
    loader = ShardedLoader(Path("a.ckpt"), TensorsReader(stored), dist.group.WORLD)  # type: ignore[arg-type]
    loader.load_model(model)
    names = [["c.weight", "c.bias"], ["b.weight"]]
    groups = [{**group, "params": own} for group, own in zip(optimizer.param_groups, names, strict=True)]
    loader.load_optimizer(optimizer, 0, {"param_groups": groups, "state": {}}, model)
    state = optimizer.state[model.get_parameter("a.weight")]
    return [float(value.flatten()[0]) for value in (model["a"].weight, model["b"].weight, *state.values())]


def test_tied_weights_load_from_either_name(tmp_path):
    assert run_on_ranks(load_under_another_name, tmp_path) == [[5.0, 5.0, 6.0, 6.0, 7.0]] * 2
