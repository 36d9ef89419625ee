"""Training graphs, as far as a CPU shows them: the replays are tested on a GPU, in tests/s2s_model."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from s2s_parallel.training_graphs import state_of


def network() -> nn.Module:
    shared = nn.Linear(3, 3)
    norm = nn.BatchNorm1d(3)
    return nn.Sequential(shared, nn.Sequential(shared, norm, nn.ReLU()))


def move_weight(root: nn.Module) -> None:
    weight = next(root.parameters())
    weight.data = weight.data.clone()


def move_buffer(root: nn.Module) -> None:
    buffer = next(root.buffers())
    buffer.data = buffer.data.clone()


def replace_weight(root: nn.Module) -> None:
    root.get_submodule("0").weight = nn.Parameter(torch.zeros(3, 3))


def replace_module(root: nn.Module) -> None:
    root.get_submodule("1").add_module("2", nn.Linear(3, 3))


@pytest.mark.parametrize(
    "change",
    [
        move_weight,
        move_buffer,
        replace_weight,
        replace_module,
        lambda root: next(root.parameters()).requires_grad_(False),
        lambda root: root.get_submodule("1.2").eval(),
    ],
)
def test_what_a_graph_depends_on_shows(change: Callable[[nn.Module], object]) -> None:
    root = network()
    before = state_of(root)
    next(root.parameters()).data.add_(1)  # as a step does
    assert state_of(root) == before
    change(root)
    assert state_of(root) != before


def test_a_module_within_itself_is_seen_once() -> None:
    root = network()
    before = state_of(root)
    vars(root)["_modules"]["again"] = root
    assert sorted(state_of(root)) == sorted(before)
