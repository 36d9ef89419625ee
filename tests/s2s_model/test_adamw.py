"""AdamW in one kernel against torch's own; on a CPU it is torch's own."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from s2s_model import weight_tables
from s2s_model.adamw import AdamW
from s2s_model.param_groups import build_optimizers
from s2s_model.weight_tables import PIECE, WeightTable, WeightTables, fit_in_a_table

SHAPES = ((3, 5), (PIECE,), (2 * PIECE + 7,), (1,), (64, 96, 3))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
WITHIN = {torch.float32: 1e-6, torch.bfloat16: 8e-3}  # of bf16: two roundings


def weights(device: str, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in SHAPES]


def set_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)


def both(device: str, dtype: torch.dtype, **options: Any) -> tuple[list[Any], list[Any]]:
    own, torchs = weights(device, dtype), weights(device, dtype)
    groups: Any = [[{"params": each[:2], "weight_decay": 0.0}, {"params": each[2:]}] for each in (own, torchs)]
    return [own, AdamW(groups[0], **options)], [torchs, torch.optim.AdamW(groups[1], fused=True, **options)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torch(device: str, dtype: torch.dtype) -> None:
    (own, optimizer), (torchs, reference) = both(device, dtype, lr=1e-2, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(5):
        for each, by in ((own, optimizer), (torchs, reference)):
            set_gradients(each, step)
            by.step()
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=WITHIN[dtype], atol=WITHIN[dtype])
    states = zip(optimizer.state_dict()["state"].values(), reference.state_dict()["state"].values(), strict=True)
    for one, other in states:
        assert one["step"] == other["step"] == 5
        torch.testing.assert_close(one["exp_avg_sq"], other["exp_avg_sq"], rtol=WITHIN[dtype], atol=WITHIN[dtype])


@pytest.mark.parametrize("device", DEVICES)
def test_skips_where_the_device_says_so(device: str) -> None:
    (own, optimizer), _ = both(device, torch.float32, lr=1e-2)
    set_gradients(own, 0)
    optimizer.step()
    before = copy.deepcopy(own)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    set_gradients(own, 1)
    optimizer.found_inf, optimizer.grad_scale = torch.ones((), device=device), None
    optimizer.step()
    for one, other in zip(own, before, strict=True):
        assert torch.equal(one, other)
    for index, kept in optimizer.state_dict()["state"].items():
        assert kept["step"] == 1
        assert torch.equal(kept["exp_avg"], state[index]["exp_avg"])


@pytest.mark.parametrize("device", DEVICES)
def test_divides_gradients(device: str) -> None:
    (own, optimizer), (torchs, reference) = both(device, torch.float32, lr=1e-2)
    set_gradients(own, 0)
    set_gradients(torchs, 0)
    optimizer.grad_scale = torch.full((), 4.0, device=device)
    optimizer.found_inf = torch.zeros((), device=device)
    optimizer.step()
    for parameter in torchs:
        assert parameter.grad is not None
        parameter.grad /= 4
    reference.step()
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one, other)


def test_either_reads_the_others_state() -> None:
    (own, optimizer), (torchs, reference) = both("cpu", torch.float32, lr=1e-2)
    set_gradients(torchs, 0)
    reference.step()
    with torch.no_grad():
        for one, other in zip(own, torchs, strict=True):
            one.copy_(other)
    optimizer.load_state_dict(copy.deepcopy(reference.state_dict()))
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, by in ((own, optimizer), (torchs, reference)):
        set_gradients(each, 1)
        by.step()
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one, other)


def test_step_after_pickling() -> None:
    (_, optimizer), _ = both("cpu", torch.float32)
    again = pickle.loads(pickle.dumps(optimizer))
    set_gradients(again.param_groups[0]["params"], 0)
    again.step()


def test_calls_a_closure_with_gradients() -> None:
    (own, optimizer), _ = both("cpu", torch.float32)

    def closure() -> float:
        loss: Tensor = own[0].square().sum()
        loss.backward()
        return float(loss.detach())

    before = own[0].detach().clone()
    assert optimizer.step(closure) == pytest.approx(float(before.square().sum()))
    assert not torch.equal(own[0], before)


def test_is_built_from_a_config() -> None:
    section = {"_target_": "s2s_model.adamw.AdamW", "lr": 1e-3, "fused": True}
    built = build_optimizers(torch.nn.Linear(2, 2), section, None)["optimizer"]
    assert isinstance(built, AdamW)
    with pytest.raises(ValueError, match="leave `fused` out"):
        AdamW([torch.nn.Parameter(torch.ones(1))], fused=False)


def test_table_names_each_piece() -> None:
    tensors = [torch.zeros(PIECE + 1), torch.zeros(3)]
    table = WeightTable([tensors, tensors])
    assert table.weight_of_piece.tolist() == [0, 0, 1]
    assert table.rows[:, 0].tolist() == [tensor.data_ptr() for tensor in tensors]
    assert table.rows[:, 2:].tolist() == [[PIECE + 1, 0], [3, 2]]
    assert not fit_in_a_table(tensors)  # a CPU has no such kernel


def test_tables_are_known_by_where_tensors_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Any] = []

    def fit(*lists: list[Tensor]) -> bool:
        looked_at.append(lists)
        return True

    monkeypatch.setattr(weight_tables, "fit_in_a_table", fit)
    weights, steps = [torch.zeros(6, 2)], [torch.zeros(())]
    one, other = [torch.zeros(6, 2)], [torch.zeros(6, 2)]
    tables = WeightTables()
    found = [tables.find(weights, each, steps=steps) for each in (one, other, one, other)]
    assert found[2] is found[0]
    assert found[3] is found[1]
    assert [table and table.rows[0, 1].item() for table in found[:2]] == [one[0].data_ptr(), other[0].data_ptr()]
    assert tables.find(weights, [one[0].view(2, 6).T], steps=steps) is not found[0], (
        "the same place, laid out otherwise"
    )
    assert tables.find([weights[0].clone()], one, steps=steps) is not found[0]
    assert len(looked_at) == 4
    monkeypatch.setattr(weight_tables, "MOST_TABLES", 4)
    tables.find(weights, [torch.zeros(6, 2)], steps=steps)
    tables.find(weights, one, steps=steps)
    assert len(looked_at) == 6, "forgotten, and looked at anew"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
def test_table_of_moved_gradients_is_sent_without_a_wait() -> None:
    weights = [torch.zeros(PIECE + 1, device="cuda")]
    gradients = [[torch.ones(PIECE + 1, device="cuda")] for _ in range(3)]
    tables = WeightTables()
    assert tables.find(weights, gradients[0], steps=[]) is not None
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = [tables.find(weights, each, steps=[]) for each in gradients[1:]]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [table and table.rows[0, 1].item() for table in found] == [each[0].data_ptr() for each in gradients[1:]]
