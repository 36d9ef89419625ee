"""What tensor parallel peers compute together, on gloo processes, against one process."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from s2s_parallel.buffers import keep_statistics_alike
from s2s_parallel.gradients import clip_norm, clip_value, scale_gradients, total_norm
from s2s_parallel.loss import cross_entropy, whole
from s2s_parallel.same_weights import check_same_weights
from tests.s2s_model.processes import run_on_ranks

FRAMES = 7


def logits_and_labels(num_groups, num_classes):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(FRAMES, num_groups * num_classes, generator=generator) * 20  # far apart: exp would overflow
    return logits, torch.randint(num_classes, (FRAMES, num_groups), generator=generator)


def shared_losses(rank, num_groups, num_classes, world_size):
    mesh = init_device_mesh("cpu", (world_size,))
    logits, labels_NK = logits_and_labels(num_groups, num_classes)
    shared = distribute_tensor(logits, mesh, [Shard(1)]).requires_grad_()
    losses_NK = cross_entropy(shared, labels_NK)
    (losses_NK * torch.arange(1.0, losses_NK.numel() + 1).view_as(losses_NK)).sum().backward()
    return losses_NK.detach(), whole(shared.grad)


# Groups end within a share, shares within a group, and the last process may have none.
@pytest.mark.parametrize(
    ("num_groups", "num_classes", "world_size"), [(1, 11, 2), (1, 64, 3), (3, 23, 2), (2, 5, 3), (5, 3, 4), (1, 5, 4)]
)
def test_shared_cross_entropy_is_that_of_whole_logits(tmp_path, num_groups, num_classes, world_size):
    logits, labels_NK = logits_and_labels(num_groups, num_classes)
    logits.requires_grad_()
    expected = F.cross_entropy(logits.view(-1, num_classes), labels_NK.flatten(), reduction="none").view_as(labels_NK)
    (expected * torch.arange(1.0, expected.numel() + 1).view_as(expected)).sum().backward()
    for losses, grad in run_on_ranks(
        shared_losses, tmp_path, num_groups, num_classes, world_size, world_size=world_size
    ):
        # float32: sums in another order, of logits up to 60
        torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(grad, logits.grad, rtol=1e-5, atol=1e-4)


def test_cross_entropy_of_one_device_counts_in_float32():
    logits, labels_NK = logits_and_labels(2, 5)
    losses_NK = cross_entropy(logits.bfloat16(), labels_NK)
    assert losses_NK.dtype == torch.float32
    expected = F.cross_entropy(logits.bfloat16().float().view(-1, 5), labels_NK.flatten(), reduction="none")
    torch.testing.assert_close(losses_NK.flatten(), expected)


def mixed_gradients(rank):
    """Parameters as a run has them: over two meshes, sharded two ways, copied, and plain."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    everyone = init_device_mesh("cpu", (4,))
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(8, 4, generator=generator) for _ in range(5)]
    shared = [
        distribute_tensor(values[0], mesh, [Shard(0), Shard(1)]),
        distribute_tensor(values[1], mesh["tensor_parallel"], [Shard(0)]),
        distribute_tensor(values[2], mesh["tensor_parallel"], [Replicate()]),
        distribute_tensor(values[3], everyone, [Shard(0)]),
        values[4],
    ]
    parameters = [nn.Parameter(torch.zeros_like(value)) for value in shared]
    for parameter, value in zip(parameters, shared, strict=True):
        parameter.grad = value.clone()
    expected = torch.cat([value.flatten() for value in values]).norm()
    answer = {"norm": (total_norm(parameters), expected), "returned": (clip_norm(parameters, 1.5), expected)}
    answer["clipped"] = (total_norm(parameters), torch.tensor(1.5))
    clip_norm(parameters, 100.0)
    answer["left alone"] = (total_norm(parameters), torch.tensor(1.5))
    scale_gradients(parameters, torch.tensor(2.0))
    answer["scaled"] = (total_norm(parameters), torch.tensor(3.0))
    clip_value(parameters, 0.01)
    largest = max(whole(p.grad).abs().max() for p in parameters if p.grad is not None)
    return answer | {"value": (largest, torch.tensor(0.01))}


def test_norm_and_clipping_see_gradients_as_one_device_would(tmp_path):
    for answer in run_on_ranks(mixed_gradients, tmp_path, world_size=4):
        for name, (seen, expected) in answer.items():
            assert not isinstance(seen, DTensor)
            torch.testing.assert_close(seen, expected, msg=name)


def test_no_gradients_have_no_norm():
    assert total_norm([nn.Parameter(torch.ones(2))]) == 0


def batch_norms(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    keep_statistics_alike(model)
    for step in range(2):
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(10 * step + rank)))
    before = model[0].running_mean.clone()
    model(torch.zeros(4, 3))
    return before, model[0].running_mean.clone()


def test_batch_norms_go_on_from_the_first_process_statistics(tmp_path):
    first, second = run_on_ranks(batch_norms, tmp_path)
    assert not torch.equal(first[0], second[0]), "each has seen its own data"
    assert torch.equal(first[1], second[1])


def differing(rank):
    torch.manual_seed(0)
    check_same_weights(nn.Linear(3, 3))
    torch.manual_seed(rank)
    with pytest.raises(ValueError, match="processes 1 were built with other weights than process 0"):
        check_same_weights(nn.Linear(3, 3))
    return True


def test_processes_that_begin_with_other_weights_are_told(tmp_path):
    assert run_on_ranks(differing, tmp_path) == [True, True]
