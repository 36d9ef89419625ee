"""What a run leaves, and how it ends when something is wrong with the machine, the data or the checkpoint."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s2s_parallel.atomic_file import CheckpointWriteError
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.run_folder import RunFolder
from tests.s2s_train.builders import metrics, run, write_config


def test_a_run_folder_holds_everything(folder, corpus, capsys):
    done = run(write_config(folder, corpus), "run")
    assert {path.name for path in done.path.iterdir()} - {"seen.jsonl", "changes.patch"} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "samples",
        "report.html",
    }
    assert yaml.safe_load(done.config.read_text())["trainer"]["max_steps"] == 6
    screen = capsys.readouterr().out
    assert re.search(r"data set +┃ +loss", screen)
    assert re.search(r"│ a +│ +[\d.]+ │", screen)
    assert str(done.report) in screen.replace("\n", "")


def test_best_and_last_checkpoints(folder, corpus):
    done = run(write_config(folder, corpus), "run", "exp_manager.checkpoint_callback_params.save_top_k=2")
    losses = {line["step"]: line["val_loss"] for line in metrics(done) if "val_loss" in line}
    best = sorted(losses, key=lambda step: losses[step])[:2]
    kept = {path.name for path in done.checkpoints.iterdir()}
    assert kept == {"last.ckpt", *(f"step={step}.ckpt" for step in best)}
    assert AtomicCheckpointIO().load_checkpoint(done.last_checkpoint)["global_step"] == 6


def test_progress_lines_where_the_output_is_no_terminal(folder, corpus, capsys):
    run(write_config(folder, corpus), "run", "trainer.enable_progress_bar=true")
    screen = capsys.readouterr().out
    assert "step 2/6 | 0:00:0" in screen
    assert "audio_s_per_s" in screen
    assert re.search(r"step 2 \| validated: loss [\d.]+\n", screen)


def test_max_time_per_run_saves_and_stops_and_the_next_run_has_it_anew(folder, corpus):
    path = write_config(folder, corpus, trainer={"max_steps": 100000, "limit_train_batches": 100000})
    for _ in range(2):
        done = run(path, "run", "exp_manager.max_time_per_run=00:00:00:01", "trainer.val_check_interval=100000")
        steps = [line["step"] for line in metrics(done)]
        saved = AtomicCheckpointIO().load_checkpoint(done.last_checkpoint)["global_step"]
        assert saved == steps[-1] > 0
    assert [line["step"] for line in metrics(done) if "train_loss" in line] == list(range(1, saved + 1))


def contents(folder: RunFolder) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.path.rglob("*")}


def test_a_checkpoint_of_another_shape_is_explained(folder, corpus):
    path = write_config(folder, corpus)
    before = contents(run(path, "run", "trainer.max_steps=2"))
    with pytest.raises(ValueError, match=r"linear\.weight is \[1, 1\] in the checkpoint, \[3, 1\] in the model"):
        run(path, "run", "model.text_loss_weight=7", width=3)
    assert contents(RunFolder(folder / "runs" / "run")) == before, "a refused command changes nothing"


def test_a_resumed_run_has_the_config_it_goes_on_with(folder, corpus):
    path = write_config(folder, corpus)
    run(path, "run", "trainer.max_steps=2")
    done = run(path, "run", "trainer.max_steps=3")
    assert yaml.safe_load(done.config.read_text())["trainer"]["max_steps"] == 3


def test_a_new_run_from_a_finished_checkpoint_has_nothing_to_train_and_says_so(folder, corpus, capsys):
    path = write_config(folder, corpus)
    done = run(path, "run")
    capsys.readouterr()
    new = run(path, "new", f"exp_manager.resume_from_checkpoint={done.last_checkpoint}")
    assert "finished trainer.max_steps=6; raise it" in capsys.readouterr().out
    assert not new.path.exists()


def _train_with_small_files_only(path: Path, report: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        run(path, "run")
    except CheckpointWriteError as error:
        report.write_text(str(error))


def test_a_disk_that_refuses_a_checkpoint_ends_the_run_and_keeps_the_last_good_one(folder, corpus):
    path = write_config(folder, corpus)
    done = run(path, "run", "trainer.max_steps=2")
    process = get_context("fork").Process(target=_train_with_small_files_only, args=(path, folder / "report"))
    process.start()
    process.join(60)
    (line,) = (folder / "report").read_text().splitlines()
    assert "checkpoint not written to" in line
    assert "File too large" in line
    assert AtomicCheckpointIO().load_checkpoint(done.last_checkpoint)["global_step"] == 2
    assert not [name for name in os.listdir(done.checkpoints) if name.endswith(".part")]
    assert [line["step"] for line in metrics(run(path, "run")) if "train_loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        pytest.param(
            "trainer.accelerator=gpu",
            r"trainer\.accelerator is gpu, but torch .* sees no GPU here: use trainer\.accelerator=cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        ("trainer.max_steps=-1", r"training has no end: give trainer\.max_steps=N"),
        ("trainer.logger=true", r"trainer\.logger: set it to false"),
        ("exp_manager.max_time_per_run=10:03:50:00", r"max_time_per_run is \d+: give DD:HH:MM:SS in quotes"),
        ("exp_manager.checkpoint_callback_params.always_save_nemo=true", r"always_save_nemo: \.nemo files"),
        (
            "exp_manager.checkpoint_callback_params.monitor=val_asr_bleu",
            r"monitor is val_asr_bleu, which needs model\.scoring_asr",
        ),
        ("exp_manager.checkpoint_callback_params.mode=up", r"mode is 'up': use max or min"),
        (
            "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy, data_parallel_size: 2}",
            r"data_parallel_size \(2\) × tensor_parallel_size \(1\) is 2, but the run has 1 process",
        ),
        (
            "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy, tensor_parallel_size: 2}",
            r"tensor_parallel_size \(2\) is 2, but the run has 1 process",
        ),
        (
            "trainer.strategy={tensor_parallel_size: 2}",
            r"trainer\.strategy has arguments but no class: set .*MeshStrategy",
        ),
        ("parallel.cpu_offload=true", r"parallel\.cpu_offload is what FSDP does.* set trainer\.strategy\._target_="),
        (
            "parallel.activation_checkpointing=some",
            r"activation_checkpointing is 'some': use none, full, selective, or",
        ),
        ("parallel.prefetch_blocks=0", r"prefetch_blocks is 0: use 1 or more"),
        ("parallel.param_dtype=bf16", r"param_dtype is 'bf16': use null or one of float32, bfloat16"),
        ("data.train_ds.shar_path=nowhere", "nowhere"),
    ],
)
def test_what_a_user_can_mend_is_said(folder, corpus, override, told):
    with pytest.raises((ValueError, OSError), match=told):
        run(write_config(folder, corpus), "run", override)
    assert not (folder / "runs").exists(), "a run that never began leaves no folder"


def test_nemos_trainer_keys_work(folder, corpus):
    nemo: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "use_distributed_sampler": False,
        "gradient_clip_val": 1.0,
        "limit_val_batches": 2,
        "num_sanity_val_steps": 1,
        "strategy": {
            "_target_": "lightning.pytorch.strategies.DDPStrategy",
            "gradient_as_bucket_view": True,
            "find_unused_parameters": True,
        },
    }
    path = write_config(folder, corpus, trainer=nemo)
    # in a process of its own: DDP leaves its process group and environment behind
    code = "import sys, pathlib, tests.s2s_train.builders as b; b.run(pathlib.Path(sys.argv[1]), 'run')"
    root = Path(__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, timeout=120, env={**os.environ, "PYTHONPATH": str(root)}
    )
    done = RunFolder(folder / "runs" / "run")
    assert done.last_checkpoint.exists()
    assert [json.loads(line)["step"] for line in done.metrics.read_text().splitlines()][-1] == 6
