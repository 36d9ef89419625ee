"""FSDP2 on two gloo processes against one process: same loss, same gradients, same weights after a step."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from s2s_parallel import fsdp
from s2s_parallel.fsdp import groups_of_layers, mixed_precision, shard_blocks
from s2s_parallel.mesh import build_mesh, resolve_mesh

WORLD_SIZE = 2
# fp32: only the order of one addition differs, (a + b) / 2 over ranks instead of a sum over the batch
TOLERANCE = 1e-6


class Tiny(nn.Module):
    """An embedding, three residual blocks of an odd width (sharded unevenly over 2), a tied head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 7)) for _ in range(3))
        self.head = nn.Linear(7, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        hidden_BTH = self.embed(tokens_BT)
        for layer in self.layers:
            hidden_BTH = hidden_BTH + layer(hidden_BTH)
        logits_BTV: torch.Tensor = self.head(hidden_BTH)
        return logits_BTV


def batch() -> torch.Tensor:
    return torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))


def train_step(model: nn.Module, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss = nn.functional.cross_entropy(model(tokens_BT).flatten(0, 1), tokens_BT.roll(1, 1).flatten())
    loss.backward()
    gradients = {f"grad.{name}": whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    weights = {f"weight.{name}": whole(p) for name, p in model.named_parameters()}
    return {"loss": loss.detach(), **gradients, **weights}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def start(function: Callable[..., None], nprocs: int, *args: object) -> None:
    """Forked, since importing torch anew in each process would take longer than the test."""
    start_processes(function, args, nprocs=nprocs, start_method="fork")


def join_group(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)


def sharded_step(rank: int, folder: Path, tied: bool) -> None:
    join_group(rank, WORLD_SIZE, folder)
    torch.manual_seed(0)
    model = Tiny(tied)
    mesh = build_mesh(resolve_mesh(WORLD_SIZE), "cpu")
    shard_blocks(model, model.layers, mesh)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    local = sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor))
    result = train_step(model, batch().chunk(WORLD_SIZE)[rank])
    torch.distributed.all_reduce(result["loss"], torch.distributed.ReduceOp.SUM)
    result["loss"] /= WORLD_SIZE
    torch.save({**result, "local": torch.tensor(local)}, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_two_processes_equal_one(tmp_path, tied):
    start(sharded_step, WORLD_SIZE, tmp_path, tied)
    torch.manual_seed(0)
    model = Tiny(tied)
    size = sum(p.numel() for p in model.parameters())
    expected = train_step(model, batch())
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD_SIZE)]
    assert sum(int(result.pop("local")) for result in results) == size, "each weight is on one process"
    for result in results:
        assert result.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(result[name], value, atol=TOLERANCE, rtol=TOLERANCE, msg=name)


def one_process_checks(rank: int, folder: Path) -> None:
    join_group(rank, 1, folder)
    mesh = build_mesh(resolve_mesh(1), "cpu")
    with pytest.raises(ValueError, match="got no blocks"):
        shard_blocks(Tiny(), [], mesh)
    stranger = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"block 0 \(Linear\) isn't a submodule of Tiny"):
        shard_blocks(Tiny(), [stranger], mesh)
    model = Tiny()
    shard_blocks(model, model.layers, mesh, policy=mixed_precision())
    assert model(batch()).dtype == torch.bfloat16, "computes in bf16"
    assert all(p.dtype == torch.float32 for p in model.parameters()), "keeps fp32 master weights"
    torch.distributed.destroy_process_group()


def test_refusals_and_mixed_precision(tmp_path):
    start(one_process_checks, 1, tmp_path)


def test_small_layers_are_gathered_together_and_large_ones_alone(monkeypatch):
    monkeypatch.setattr(fsdp, "GROUP_SIZE", 100)
    layers = [nn.Linear(7, size, bias=False) for size in (5, 5, 5, 20, 1, 1)]  # 35, 35, 35, 140, 7 and 7 numbers
    groups = groups_of_layers(layers)
    assert groups == [layers[:3], layers[3], layers[4:]]
    assert groups_of_layers([]) == []
