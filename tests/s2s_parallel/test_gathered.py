"""What a validation that ends in an exception leaves of sharded weights."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from s2s_parallel.fsdp import gather, release
from s2s_parallel.strategy import MeshStrategy
from tests.s2s_parallel.toy import Toy
from tests.s2s_parallel.trainers import fit_on_ranks


class FailsWhileGathered(Toy):
    """Gathers its weights for validation, and breaks in the middle of it."""

    def on_validation_epoch_start(self) -> None:
        gather(self)
        self.were_whole = not any(isinstance(parameter, DTensor) for parameter in self.net.layers.parameters())

    def validation_step(self, batch, batch_idx):
        raise RuntimeError("the recogniser broke")


def fail(folder: Path) -> tuple[bool, bool]:
    model = FailsWhileGathered()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=MeshStrategy(data_parallel_size=2),
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with pytest.raises(RuntimeError, match="the recogniser broke"):
        trainer.validate(model, DataLoader(TensorDataset(torch.zeros(1))), verbose=False)
    are_sharded = all(isinstance(parameter, DTensor) for parameter in model.net.layers.parameters())
    release(model)  # once more: nothing is gathered
    return model.were_whole, are_sharded


def test_gathered_weights_are_let_go_of_after_an_exception(tmp_path):
    assert fit_on_ranks(fail, tmp_path, tmp_path) == [(True, True)] * 2
