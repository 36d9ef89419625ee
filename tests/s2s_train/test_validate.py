"""`validate` with the tiny model, and which checkpoint is meant."""

import zipfile
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from s2s_train.config import load_config
from s2s_train.find_checkpoint import find_checkpoint
from s2s_train.run_folder import RunFolder
from s2s_train.validate import TEST, VALIDATION, validate
from tests.s2s_train.builders import TinyModel, write_config


@pytest.mark.parametrize(("what", "section", "key"), [(VALIDATION, "validation_ds", "val"), (TEST, "test_ds", "test")])
def test_no_batches_are_told(what, section, key, corpus, folder) -> None:
    datasets = f"data.{section}={{batch_size: 2, datasets: {{a: {{shar_path: {corpus}}}}}}}"
    cfg = load_config(write_config(folder, corpus), [f"trainer.limit_{key}_batches=0", datasets, "name=x"])
    with pytest.raises(ValueError, match=f"trainer.limit_{key}_batches is 0: there is nothing to {what.name} on"):
        validate(cfg, None, TinyModel, lambda cfg, folder: [], what)


def test_loggers_of_a_test_stay_what_they_are_and_rename(folder) -> None:
    logger = TensorBoardLogger(save_dir=str(folder))
    [renaming] = TEST.rename_in([logger])
    assert isinstance(renaming, TensorBoardLogger)  # scorers give samples to these
    seen = []
    renaming.experiment.add_scalar = lambda name, value, step: seen.append((name, value, step))
    renaming.log_metrics({"val_loss": 1.5, "ceiling_asr_bleu_a": 90.0}, 3)
    assert seen == [("test_loss", 1.5, 3), ("ceiling_asr_bleu_a", 90.0, 3)]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with two checkpoints."""
    run = RunFolder(tmp_path / "mine")
    run.checkpoints.mkdir(parents=True)
    for name in ("last.ckpt", "step=500.ckpt"):
        with zipfile.ZipFile(run.checkpoints / name, "w") as file:
            file.writestr("data", "x")
    return run


def test_a_name_is_one_of_the_run_and_a_path_is_not(run: RunFolder) -> None:
    assert find_checkpoint(run, "last", "ckpt") == run.last_checkpoint
    assert find_checkpoint(run, "step=500.ckpt", "ckpt") == run.checkpoints / "step=500.ckpt"
    assert find_checkpoint(run, str(run.last_checkpoint), "ckpt") == run.last_checkpoint
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at runs/other/checkpoints/last\.ckpt: give one of last"
    ):
        find_checkpoint(run, "runs/other/checkpoints/last.ckpt", "ckpt")


def test_what_is_no_checkpoint_is_told(run: RunFolder) -> None:
    with pytest.raises(ValueError, match="ckpt '' is no checkpoint: give last, best or a path"):
        find_checkpoint(run, "", "ckpt")
    with pytest.raises(ValueError, match="mine is a folder, but no checkpoint: give another with ckpt one of last"):
        find_checkpoint(run, str(run.path), "ckpt")
