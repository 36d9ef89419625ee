import subprocess
import sys

import pytest

from s2s_parallel.mesh import MeshSizes, resolve_mesh, sizes_that_work


def test_auto_fills_the_world_with_data_parallel_processes():
    assert resolve_mesh(8) == MeshSizes(data_parallel_size=8, tensor_parallel_size=1)
    assert resolve_mesh(4, "auto", 1).world_size == 4


def test_a_product_that_is_not_the_world_quotes_both_numbers_and_what_works():
    with pytest.raises(ValueError, match=r"data_parallel_size \(3\) × tensor_parallel_size \(1\) is 3") as caught:
        resolve_mesh(8, 3, 1)
    assert "has 8 processes" in str(caught.value)
    assert "use data_parallel_size=8 with tensor_parallel_size=1" in str(caught.value)


def test_data_parallel_size_is_what_tensor_parallelism_leaves():
    assert resolve_mesh(8, "auto", 2) == MeshSizes(4, 2)
    with pytest.raises(
        ValueError, match=r"data_parallel_size \(1\) × tensor_parallel_size \(3\) is 3, but the run has 2"
    ):
        resolve_mesh(2, "auto", 3)


def test_copies_of_the_weights_divide_the_data_parallel_processes():
    sizes = resolve_mesh(8, 4, 2, replicate_size=2)
    assert (sizes.shard_size, sizes.world_size) == (2, 8)
    with pytest.raises(ValueError, match=r"replicate_size \(3\) must divide data_parallel_size \(4\): use 1, 2 or 4"):
        resolve_mesh(8, 4, 2, replicate_size=3)


def test_context_parallel_peers_share_dialogues_and_weights():
    sizes = resolve_mesh(16, "auto", 2, replicate_size=2, context_parallel_size=2)
    assert sizes == MeshSizes(4, 2, 2, 2)
    assert (sizes.world_size, sizes.num_peers, sizes.shard_size) == (16, 4, 4)
    with pytest.raises(ValueError, match=r"context_parallel_size \(3\) must divide the run's 8 processes") as told:
        resolve_mesh(8, context_parallel_size=3)
    assert str(told.value).endswith("use 1, 2, 4 or 8")
    with pytest.raises(ValueError, match=r"\(3\) × context_parallel_size \(2\) × .* is 12, but the run has 8") as told:
        resolve_mesh(8, 3, 2, context_parallel_size=2)
    assert "use data_parallel_size=4 with tensor_parallel_size=1 or data_parallel_size=2" in str(told.value)
    for size in (0, "auto", True):
        with pytest.raises(
            ValueError, match=rf"context_parallel_size is {size}: use 1 or more \(1 disables the axis\)$"
        ):
            resolve_mesh(2, context_parallel_size=size)


@pytest.mark.parametrize(("dp", "tp", "name"), [(0, 1, "data_parallel_size"), (2, 0, "tensor_parallel_size")])
def test_sizes_below_one_are_refused_by_name(dp, tp, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        resolve_mesh(2, dp, tp)


def test_every_size_offered_is_accepted():
    for world_size in (1, 2, 6):
        for sizes in sizes_that_work(world_size):
            resolved = resolve_mesh(world_size, sizes.data_parallel_size, sizes.tensor_parallel_size)
            assert resolved == sizes


def test_sizes_that_a_model_allows():
    assert sizes_that_work(8, [1, 2, 4, 5]) == [MeshSizes(8, 1), MeshSizes(4, 2), MeshSizes(2, 4)]


def test_checking_sizes_imports_no_torch():
    code = "import sys, s2s_parallel.mesh as m; m.resolve_mesh(2); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
