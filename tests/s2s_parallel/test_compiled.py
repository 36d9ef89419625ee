"""What compiled blocks keep for backward, and for which sizes. Torch's partitioner decides it, whatever the kernels."""

from functools import partial

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import Tensor, nn

from s2s_parallel.compiled import _compiled, compile_in_training
from s2s_parallel.config import ParallelConfig, check_config
from s2s_parallel.parallelize import parallelize
from s2s_parallel.parts import ModelParts


class Block(nn.Module):
    """Two matrices with something cheap between."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.narrow(torch.tanh(torch.sin(self.wide(x)) * 2) + 1)
        return out


@pytest.fixture
def partitioned(monkeypatch):
    """Torch's compiler up to where it decides what is kept; its kernels take a minute."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", partial(compile_, backend="aot_eager_decomp_partition"))
    _compiled.cache_clear()
    torch._dynamo.reset()
    with functorch_config.patch(activation_memory_budget=1.0):  # put back as it was
        yield
    _compiled.cache_clear()
    torch._dynamo.reset()


def kept_and_gradient(budget: float) -> tuple[int, Tensor]:
    """Numbers kept for backward, weights not counted, and the gradient of a weight."""
    torch.manual_seed(0)
    block = Block()
    parts = ModelParts(
        body=block, config=None, layers=[block], embeddings=[], heads=[], encoder=block, encoder_layers=[],
        subsampling=[],
    )  # fmt: skip
    torch._dynamo.reset()
    parallelize(block, parts, None, ParallelConfig(compile=True, activation_memory_budget=budget))
    weights = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = block(torch.randn(2048, 8)).square().sum()
    loss.backward()
    assert block.wide.weight.grad is not None
    return sum(kept.values()), block.wide.weight.grad


def test_a_smaller_budget_keeps_less_and_has_the_same_gradients(partitioned):
    all_kept, expected = kept_and_gradient(1.0)
    fewer, gradient = kept_and_gradient(0.6)
    fewest, again = kept_and_gradient(0.0)
    assert fewest < fewer < all_kept
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(again, expected)


def test_on_a_cpu_each_size_is_compiled(partitioned):
    """Inductor fails there at a Conformer for any size."""
    block = Block()
    compile_in_training(block)
    torch._dynamo.utils.counters.clear()
    for size in (4, 6, 4, 10, 6):
        block(torch.randn(size, 8)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_memory_budget": 1.5, "compile": True}, "is 1.5: use a share from 0 to 1"),
        ({"activation_memory_budget": 0.5}, "is 0.5, which the compiler sees to: set parallel.compile=true"),
    ],
)
def test_budgets_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check_config(ParallelConfig(**options))
