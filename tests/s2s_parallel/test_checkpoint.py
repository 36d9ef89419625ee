import itertools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from s2s_parallel.atomic_file import CheckpointWriteError, write_atomically
from s2s_parallel.checkpoint import AtomicCheckpointIO, CheckpointReadError, is_complete


def forked(function: Callable[..., object], *args: object) -> ForkProcess:
    """Run `function` in a child that has torch and Lightning imported already."""
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


def save(path: Path, value: float = 1.0, **more: object) -> None:
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"w": torch.full((3,), value)}, **more}, path)


def value_at(path: Path) -> float:
    return float(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"][0])


def test_round_trip_replaces_and_leaves_no_partial_file(tmp_path):
    path = tmp_path / "new_folder" / "last.ckpt"
    save(path, 1.0, global_step=5, nested={"list": [1, "a", None, 2.5]})
    save(path, 2.0)
    assert value_at(path) == 2.0
    assert os.listdir(path.parent) == ["last.ckpt"]
    assert is_complete(path)


def save_with_files_limited_to_64_kib(path: Path, num_values: int, report: Path) -> None:
    """Past 64 KiB the system itself refuses the write (EFBIG), as a full disk does (ENOSPC)."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
    try:
        AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(num_values)}, path)
    except CheckpointWriteError as error:
        report.write_text(f"{error.errno} {error}")


@pytest.mark.parametrize("num_values", [1_000_000, 16_300], ids=["in the tensor", "in the archive's end"])
def test_a_refused_write_keeps_the_previous_checkpoint_and_says_so_in_one_line(tmp_path, num_values):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(path, 7.0)
    forked(save_with_files_limited_to_64_kib, path, num_values, tmp_path / "report").join()
    (line,) = (tmp_path / "report").read_text().splitlines()
    assert line.startswith("27 checkpoint not written to ")
    for part in (str(path), "File too large", "bytes free", "free some space", "to resume"):
        assert part in line
    assert value_at(path) == 7.0
    assert os.listdir(path.parent) == ["last.ckpt"]


def test_a_full_device_gives_no_space_left(tmp_path):
    """/dev/full refuses every write with ENOSPC; the partial file is a link to it."""
    (tmp_path / ".last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        save(tmp_path / "last.ckpt")
    assert caught.value.errno == 28
    assert not (tmp_path / "last.ckpt").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"checkpoint not written to .*checkpoints/last\.ckpt"):
        save(tmp_path / "checkpoints" / "last.ckpt")


def stop_amid_a_save(path: Path, started: Path) -> None:
    def write(file: BinaryIO) -> None:
        file.write(b"half of a checkpoint")
        file.flush()
        started.touch()
        time.sleep(60)

    write_atomically(path, write)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in 60 s"
        time.sleep(0.002)


def test_kill_9_during_a_save_leaves_the_last_good_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.ckpt"
    save(path, 3.0)
    process = forked(stop_amid_a_save, path, tmp_path / "started")
    wait_for((tmp_path / "started").exists)
    process.kill()
    process.join()
    assert value_at(path) == 3.0
    assert (path.parent / ".last.ckpt.part").exists(), "the kill came in the middle of the save"
    save(path, 4.0)
    assert value_at(path) == 4.0
    assert os.listdir(path.parent) == ["last.ckpt"], "the next save clears what the killed one left"


def save_for_ever(path: Path) -> None:
    torch.set_num_threads(1)
    for step in itertools.count(1):
        AtomicCheckpointIO().save_checkpoint({"step": step, "w": torch.full((300_000,), float(step))}, path)
        (path.parent / f"done{step}").touch()


@pytest.mark.parametrize("delay_ms", [0, 3, 7])
def test_kill_9_at_any_moment_of_real_saves_leaves_a_loadable_one(tmp_path, delay_ms):
    path = tmp_path / "last.ckpt"
    process = forked(save_for_ever, path)
    wait_for((tmp_path / "done3").exists)
    time.sleep(delay_ms / 1000)
    process.kill()
    process.join()
    checkpoint = AtomicCheckpointIO().load_checkpoint(path)
    assert checkpoint["step"] >= sum(1 for _ in tmp_path.glob("done*"))
    assert torch.equal(checkpoint["w"], torch.full((300_000,), float(checkpoint["step"])))


class NotPlain:
    pass


def test_objects_that_could_run_code_are_refused_unless_trusted(tmp_path):
    path = tmp_path / "foreign.ckpt"
    save(path, hyper=NotPlain())
    with pytest.raises(CheckpointReadError, match=r"holds more than tensors.*trusted=True") as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert isinstance(AtomicCheckpointIO(trusted=True).load_checkpoint(path)["hyper"], NotPlain)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", None], ids=["empty", "text", "cut short"])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "last.ckpt"
    save(path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    assert not is_complete(path)
    with pytest.raises(CheckpointReadError, match=r"last\.ckpt can't be read, it is damaged"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*gone\.ckpt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")
