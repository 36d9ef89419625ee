"""What the app does with checkpoints that are folders, as runs on several devices save them."""

import os
from pathlib import Path
from typing import Any

import pytest

from s2s_parallel.checkpoint import AtomicCheckpointIO, is_complete
from s2s_parallel.strategy import MeshStrategy
from s2s_train.checkpoints import BestCheckpoint, LastCheckpoint, build_checkpoints
from s2s_train.exp_config import CheckpointParams, ExpConfig
from s2s_train.run_folder import RunFolder
from s2s_train.trainer import build_trainer
from s2s_train.trainer_config import TrainerConfig
from tests.s2s_parallel.toy import StatefulLoader, Toy, make_trainer, train
from tests.s2s_parallel.trainers import fit_on_ranks

pytestmark = pytest.mark.filterwarnings("ignore")
DP2 = {"data_parallel_size": 2}


def fit_as_the_app_does(folder: Path, filename: str, save_top_k: int, max_steps: int) -> None:
    run = RunFolder(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    resumed = run.checkpoint_to_resume(ExpConfig())
    best = BestCheckpoint(
        dirpath=run.checkpoints.absolute(),
        filename=filename,
        monitor="val_loss",
        save_top_k=save_top_k,
        save_on_train_epoch_end=False,
    )
    options: dict[str, Any] = {"val_check_interval": 1, "limit_val_batches": 1, "enable_checkpointing": True}
    last = LastCheckpoint(run.last_checkpoint.absolute())
    trainer = make_trainer(DP2, max_steps, callbacks=[best, last], **options)
    trainer.fit(Toy(), StatefulLoader(), StatefulLoader(), ckpt_path=resumed)


def test_best_and_last_are_folders_and_the_run_goes_on_from_last(tmp_path):
    run = RunFolder(tmp_path / "run")
    for max_steps, kept in ((3, "step=3.ckpt"), (5, "step=5.ckpt")):
        fit_on_ranks(fit_as_the_app_does, tmp_path / "ranks", run.path, "{step}", 1, max_steps)
        assert sorted(os.listdir(run.checkpoints)) == ["last.ckpt", kept]
        assert all(path.is_dir() and is_complete(path) for path in run.checkpoints.iterdir())
        assert AtomicCheckpointIO().load_checkpoint(run.last_checkpoint)["global_step"] == max_steps


def test_a_name_without_the_step_is_numbered_also_while_it_is_being_written(tmp_path):
    run = RunFolder(tmp_path / "run")
    fit_on_ranks(fit_as_the_app_does, tmp_path / "ranks", run.path, "best", -1, 3)
    assert sorted(os.listdir(run.checkpoints)) == ["best-v1.ckpt", "best-v2.ckpt", "best.ckpt", "last.ckpt"]


def test_a_run_goes_on_from_a_folder_that_a_kill_left_aside_or_from_the_newest_whole_one(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    fit_on_ranks(train, tmp_path / "ranks", DP2, 2, run.last_checkpoint)
    run.last_checkpoint.rename(run.checkpoints / ".last.ckpt.old")  # what a kill between two renames leaves
    assert run.checkpoint_to_resume(ExpConfig()) == run.last_checkpoint
    assert is_complete(run.last_checkpoint)
    fit_on_ranks(train, tmp_path / "ranks", DP2, 2, run.checkpoints / "step=2.ckpt")
    (run.last_checkpoint / "__0_0.distcp").unlink()
    assert run.checkpoint_to_resume(ExpConfig()) == run.checkpoints / "step=2.ckpt"


@pytest.mark.parametrize(
    "target",
    [
        "lightning.pytorch.strategies.ModelParallelStrategy",
        "lightning.pytorch.strategies.model_parallel.ModelParallelStrategy",
        "s2s_parallel.strategy.MeshStrategy",
    ],
)
def test_lightnings_strategy_becomes_ours(tmp_path, target):
    strategy = {"_target_": target, "data_parallel_size": 2, "tensor_parallel_size": 1}
    cfg = TrainerConfig(accelerator="cpu", devices=2, max_steps=1, strategy=strategy)
    trainer = build_trainer(cfg, loggers=[], callbacks=[], root_dir=str(tmp_path))
    assert isinstance(trainer.strategy, MeshStrategy)
    assert trainer.validate_loop.inference_mode is False
    assert trainer.fit_loop.epoch_loop.val_loop.inference_mode is False
    one = build_trainer(TrainerConfig(accelerator="cpu", devices=1, max_steps=1), loggers=[], callbacks=[], root_dir="")
    assert one.validate_loop.inference_mode is True


def test_a_mesh_that_does_not_fit_is_refused_before_anything_starts(tmp_path):
    strategy = {"_target_": "s2s_parallel.strategy.MeshStrategy", "data_parallel_size": 4, "replicate_size": 3}
    cfg = TrainerConfig(accelerator="cpu", devices=4, max_steps=1, strategy=strategy)
    with pytest.raises(ValueError, match=r"replicate_size \(3\) must divide data_parallel_size \(4\): use 1, 2 or 4"):
        build_trainer(cfg, loggers=[], callbacks=[], root_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("val_text_loss_seen", "min"),
        ("val_asr_wer", "min"),
        ("val_said_cer_seen", "min"),
        ("val_token_perplexity", "min"),
        ("val_missed_turns", "min"),
        ("val_false_stops_seen", "min"),
        ("val_barge_in_stop_s_median", "min"),
        ("val_barge_in_success", "max"),
        ("val_barge_ins", "max"),
        ("val_code_accuracy", "max"),
        ("val_asr_bleu_flower", "max"),
        ("val_asr_bleu_loss", "max"),
    ],
)
def test_what_is_better_follows_from_the_metrics_name(monitor, mode, tmp_path):
    exp = ExpConfig(checkpoint_callback_params=CheckpointParams(monitor=monitor))
    best = build_checkpoints(exp, RunFolder(tmp_path), has_scoring_asr=True)[0]
    assert best.mode == mode
