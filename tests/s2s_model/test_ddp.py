"""Two processes under Lightning's DDP train as one that sees both their batches."""

import copy

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader, Dataset

from s2s_model import DuplexS2SModel
from tests.s2s_model.builders import make_batch, slice_batch


def dialogues():
    """Three optimizer steps of two dialogues of unequal length; in the second step one of them is broken."""
    batches = [slice_batch(make_batch((24, 12), seed=seed), row) for seed in range(3) for row in (0, 1)]
    batches[3]["source_audio"] = batches[3]["source_audio"] * float("inf")
    batches[3]["cut_ids"] = ["broken"]
    return batches


class OfRank(Dataset[dict[str, object]]):
    """Every second dialogue."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return dialogues()[2 * index + torch.distributed.get_rank()]


class WeightsToFile(Callback):
    """Writes what each rank has in the end."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        answer = (pl_module.state_dict(), pl_module._num_nonfinite_steps)
        torch.save(answer, self.folder / f"rank{trainer.global_rank}.pt")


def fit(model, folder, data, **options):
    trainer = Trainer(
        accelerator="cpu", max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=None))


def test_two_ranks_train_as_one_and_skip_a_broken_step_together(config, tmp_path):
    torch.manual_seed(0)
    model = DuplexS2SModel(config | {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.05}})
    alone = copy.deepcopy(model)
    fit(model, tmp_path, OfRank(), devices=2, strategy="ddp_fork", callbacks=[WeightsToFile(tmp_path)])
    fit(alone, tmp_path, dialogues(), devices=1, accumulate_grad_batches=2)
    for rank in (0, 1):
        state, num_skipped = torch.load(tmp_path / f"rank{rank}.pt")
        assert num_skipped == alone._num_nonfinite_steps == 1
        for name, value in alone.state_dict().items():
            # float32: gradients are averaged over ranks instead of summed over batches
            torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)
