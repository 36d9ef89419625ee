"""The whole model in Lightning's Trainer: trained on one mesh, resumed on another, on one process."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from s2s_model import DuplexS2SModel
from s2s_parallel.checkpoint import AtomicCheckpointIO, is_complete
from s2s_parallel.config import ParallelConfig
from s2s_parallel.loss import whole
from s2s_parallel.strategy import MeshStrategy
from tests.s2s_model.builders import make_batch, slice_batch
from tests.s2s_model.families import make_family
from tests.s2s_parallel.trainers import fit_on_ranks

SAVED, END = 20, 26
OPTIMIZER = {
    "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3, "weight_decay": 0.1},
    "param_groups": [{"match": "^perception", "lr": 1e-3}],
    "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.98},
}


class Dialogues(IterableDataset[object]):
    """Two dialogues a step, without end: one for each data parallel rank, or one after the other."""

    def __init__(self, trainer, first_step):
        self.trainer = trainer
        self.first_step = first_step

    def __iter__(self):
        place = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        for number in itertools.count(place["rank"], place["num_replicas"]):
            step, row = divmod(number, 2)
            yield slice_batch(make_batch((24, 17), seed=self.first_step + step), row)


class Watch(Callback):
    """Keeps the loss of each step, over the frames of all its batches."""

    def __init__(self):
        self.losses = {}
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        frames = float(batch["target_token_lens"].sum()) - 1
        self.batches.append((float(trainer.callback_metrics["train_loss"]) * frames, frames))
        if len(self.batches) == trainer.accumulate_grad_batches:
            sums, frames = zip(*self.batches, strict=True)
            self.losses[trainer.global_step] = sum(sums) / sum(frames)
            self.batches = []


class SaveAt(Callback):
    """Saves behind a step, as the app does, and ends the run."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == SAVED and not trainer.fit_loop.epoch_loop._should_accumulate():
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def fit(model_config, sizes, save_to, resume_from):
    torch.manual_seed(0)
    model = DuplexS2SModel(model_config | OPTIMIZER, parallel=ParallelConfig(activation_checkpointing="full"))
    dp = (sizes or {}).get("data_parallel_size", 1)
    world_size = processes(sizes)
    watch = Watch()
    callbacks = [watch] if save_to is None else [watch, SaveAt(save_to)]
    trainer = Trainer(
        accelerator="cpu", devices=world_size, strategy=MeshStrategy(**sizes) if sizes else "auto", max_steps=END,
        accumulate_grad_batches=2 // dp, gradient_clip_val=1.0, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    data = DataLoader(Dialogues(trainer, SAVED if resume_from else 0), batch_size=None)
    trainer.fit(model, data, ckpt_path=resume_from)
    weights = {name: whole(value).detach() for name, value in model.state_dict().items()}
    return {"losses": watch.losses, "weights": weights}


def on(sizes, folder, *args):
    return fit_on_ranks(fit, folder, *args, world_size=processes(sizes))[0]


def processes(sizes):
    return math.prod((sizes or {}).values())


def grid(dp, tp, cp=1):
    return {"data_parallel_size": dp, "tensor_parallel_size": tp, "context_parallel_size": cp}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, codec_path):
    """A run of all steps on dp=2, and a checkpoint of one that ended before."""
    folder = tmp_path_factory.mktemp("runs")
    from tests.s2s_model.builders import model_config

    config = model_config(make_family("qwen2.5", folder / "llm"), codec_path)
    whole = on(grid(2, 1), folder / "whole", config, grid(2, 1), None, None)
    checkpoint = folder / "last.ckpt"
    on(grid(2, 1), folder / "cut", config, grid(2, 1), checkpoint, None)
    assert is_complete(checkpoint)
    return config, whole, checkpoint


@pytest.mark.parametrize(
    "sizes",
    [None, grid(1, 2), grid(2, 1), grid(2, 2), grid(1, 1, 2), grid(2, 1, 2)],
    ids=["one", "tp2", "dp2", "2x2", "cp2", "dp2 cp2"],
)
def test_a_run_goes_on_upon_another_mesh(runs, tmp_path, sizes):
    config, whole, checkpoint = runs
    gone_on = on(sizes, Path(tmp_path), config, sizes, None, checkpoint)
    steps = range(SAVED + 1, END + 1)
    print(whole["losses"], gone_on["losses"])
    for name, value in whole["weights"].items():
        # float32 over six steps of AdamW, which turns the least gradient into a step of lr; wrong moments, or none,
        # give differences of the size of the steps, 1e-3
        torch.testing.assert_close(
            gone_on["weights"][name], value, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert set(steps) <= set(gone_on["losses"])
    for step in steps:
        assert gone_on["losses"][step] == pytest.approx(whole["losses"][step], rel=1e-4)
