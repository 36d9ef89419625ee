"""The gradient of a step is that of all its frames, over ranks and accumulated batches, however they are filled."""

import torch
from torch import nn

from s2s_model.step_window import StepWindow
from tests.s2s_model.processes import run_on_ranks

FRAMES = {0: (3, 8), 1: (10, 1)}  # of each rank, two batches a step


def net():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def batch(rank, index):
    return torch.randn(FRAMES[rank][index], 4, generator=torch.Generator().manual_seed(rank * 10 + index))


def loss_sum(model, x):
    return model(x).square().sum()


def accumulate(rank):
    """As Lightning and DDP do it: mean over ranks of gradients summed over batches divided by their number."""
    model, window = net(), StepWindow()
    for index in range(2):
        x = batch(rank, index)
        loss = loss_sum(model, x)
        divisor, _ = window.add(loss, torch.tensor(len(x)), [f"cut-{rank}-{index}"])
        (loss / divisor * 2 / 2).backward()
    for parameter in model.parameters():
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    assert window.nonfinite_cuts() is None
    window.rescale(model.parameters())
    return [p.grad for p in model.parameters()]


def test_gradients_over_ranks_and_batches_equal_those_of_all_frames_at_once(tmp_path):
    model = net()
    everything = torch.cat([batch(rank, index) for rank in (0, 1) for index in (0, 1)])
    (loss_sum(model, everything) / len(everything)).backward()
    expected = [p.grad for p in model.parameters()]
    for gradients in run_on_ranks(accumulate, tmp_path):
        for gradient, wanted in zip(gradients, expected, strict=True):
            # float32 sums in another order
            torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)


def infinite_on_rank_1(rank):
    window = StepWindow()
    window.add(torch.tensor(1.0), torch.tensor(2), [f"fine-{rank}"])
    window.add(torch.tensor(float("inf") if rank else 1.0), torch.tensor(2), [f"a-{rank}", f"b-{rank}"])
    cuts = window.nonfinite_cuts()
    window.close()
    window.add(torch.tensor(1.0), torch.tensor(2), ["next"])
    return cuts, window.nonfinite_cuts()


def test_all_ranks_learn_which_cuts_made_a_loss_infinite_and_the_next_step_starts_clean(tmp_path):
    assert run_on_ranks(infinite_on_rank_1, tmp_path) == [(["a-1", "b-1"], None)] * 2
