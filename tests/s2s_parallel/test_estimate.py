"""Sums by hand."""

import pytest

from s2s_parallel.config import ParallelConfig
from s2s_parallel.estimate import (
    Activations,
    BlockActivations,
    Count,
    Layout,
    Part,
    Training,
    activation_bytes,
    all_layouts,
    estimate_memory,
    fits,
)
from s2s_parallel.gpus import CONSTANTS, GIB, GPUS, find_gpu
from s2s_parallel.mesh import MeshSizes
from s2s_parallel.speed import (
    Sent,
    Work,
    data_parallel_bytes,
    estimate_speed,
    flops_of_step,
    mfu,
    tensor_parallel_bytes,
)

LLM = Part("llm", trained=Count(matrices=1600, vectors=80), frozen=Count(matrices=160), largest_unit=400)
HEAD = Part("text head", trained=Count(matrices=800), largest_unit=800)
ENCODER = Part("perception", trained=Count(matrices=240, vectors=8), sharding="encoder", largest_unit=31)
CODEC = Part("codec", trained=Count(), frozen=Count(matrices=10), sharding="whole", bytes_per_number=4)
PARTS = [LLM, HEAD, ENCODER, CODEC]

BLOCK = BlockActivations(input=100, residual=400, gathered=200, inside=1200, products=600, outputs=200)
ACTIVATIONS = Activations(encoder=50, other=40, blocks=(BLOCK,) * 4, heads=1000, hidden=20)
BF16 = {"weight_bytes": 2, "compute_bytes": 2}
WORK = Work(
    batch_size=2, num_frames=10, duration_s=0.8, block_params=1000, frozen_block_params=0, head_params=300,
    num_blocks=4, attention_width=16, hidden_size=8, encoder_forward_flops=5000.0,
)  # fmt: skip


def memory(data: int = 1, tensor: int = 1, copies: int = 1, *, sharded: bool = True, **training):
    return estimate_memory(PARTS, ACTIVATIONS, Training(**training), Layout(MeshSizes(data, tensor, copies), sharded))


def test_a_copy_on_each_gpu():
    found = memory(8, sharded=False, **BF16)
    assert found.weights == {"llm": 2 * 1840, "text head": 1600, "perception": 2 * 248, "codec": 40}
    assert found.gradients == {"llm": 2 * 1680, "text head": 1600, "perception": 2 * 248, "codec": 0}
    assert found.optimizer == {"llm": 4 * 1680, "text head": 3200, "perception": 4 * 248, "codec": 0}
    assert found.kept == 5816 + 5456 + 10912
    stepping = 5456 + 5456  # gradients, and foreach's copies
    assert found.allocated == 5816 + 10912 + found.fixed + stepping
    in_forward = memory(8, sharded=False, **BF16, optimizer_copies=0)
    assert in_forward.allocated == 5816 + 10912 + found.fixed + sum(found.activations.values()), "gradients come later"
    accumulating = memory(8, sharded=False, **BF16, optimizer_copies=0, accumulates=True)
    assert accumulating.allocated == in_forward.allocated + 5456
    assert found.total == found.allocated + found.outside


def test_weights_are_divided_by_shards_and_tensor_parallelism():
    found = memory(4, 2, **BF16)
    # LLM: 1600 + 160 matrices over 4 × 2, 80 vectors over 4; the encoder over all 8; the codec is whole.
    assert found.weights == {"llm": 2 * (200 + 20 + 20), "text head": 200, "perception": 2 * 31, "codec": 40}
    assert found.optimizer["llm"] == 4 * (200 + 20)


def test_copies_of_the_weights_halve_the_shards():
    assert memory(8, 1, 2).weights["llm"] == 2 * memory(8).weights["llm"]
    assert memory(8, 1, 2).weights["perception"] == memory(8).weights["perception"]


def test_gathered_weights():
    # The encoder, the head with its gradient in float32 (fp32 sums), and one block ahead.
    encoder = 248 * 2
    assert memory(8, **BF16).gathered == encoder + 800 * (2 + 4) + 400 * 2
    assert memory(4, 2, **BF16).gathered == encoder + 400 * (2 + 4) + 200 * 2
    kept = ParallelConfig(reshard_after_forward=False)
    assert memory(8, **BF16, parallel=kept).gathered == encoder + 800 * (2 + 4) + (1840 + 800) * 2
    assert memory(1, **BF16).gathered == 0, "nothing to gather"
    assert memory(1, weight_bytes=4, compute_bytes=2).gathered > 0, "cast weights are a copy too"


def test_validation_gathers_all_weights():
    assert memory(8, **BF16).validating == (1840 + 800 + 248) * 2
    assert memory(4, 2, **BF16).validating == (920 + 400 + 248) * 2
    assert memory(8, **BF16, validates=False).validating == memory(8, **BF16, sharded=False).validating == 0


def test_offload_leaves_the_codec_on_the_gpu():
    found = memory(8, **BF16, parallel=ParallelConfig(cpu_offload=True))
    assert found.kept == 40
    assert found.host == memory(8, **BF16).kept - 40


def test_ddp_copies_gradients_into_buckets():
    assert memory(8, **BF16, sharded=False, ddp_buckets=True).gathered == 2 * (1680 + 800 + 248)


def test_optimizer_temporaries_count_where_activations_are_small():
    small = Activations(0, 0, (), 0)
    found = estimate_memory(PARTS, small, Training(**BF16), Layout(MeshSizes(1), False))
    assert found.allocated == found.kept + found.fixed + 5456
    fused = estimate_memory(PARTS, small, Training(**BF16, optimizer_copies=0), Layout(MeshSizes(1), False))
    assert fused.allocated == fused.kept + fused.fixed


@pytest.mark.parametrize(
    ("mode", "blocks", "again"),
    [
        ("none", 4 * 1800, 0),
        ("full", 4 * 100, 1700),
        ("selective", 4 * (100 + 200 + 600), 900),
        (2, 2 * 100 + 2 * 1800, 1700),
    ],
)
def test_recomputation(mode, blocks, again):
    found = activation_bytes(ACTIVATIONS, ParallelConfig(activation_checkpointing=mode), MeshSizes(1))
    assert found["LLM blocks"] == blocks
    assert sum(found.values()) == 50 + 40 + blocks + 20 + max(1000, again)


def test_tensor_parallelism_divides_what_it_shares():
    shared = activation_bytes(ACTIVATIONS, ParallelConfig(), MeshSizes(1, 2))
    assert shared["LLM blocks"] == 4 * (200 + 200 + 600)
    assert sum(shared.values()) == 50 + 20 + 4000 + 20 + 500
    whole = activation_bytes(ACTIVATIONS, ParallelConfig(sequence_parallel=False), MeshSizes(1, 2))
    assert whole["LLM blocks"] == 4 * (400 + 200 + 600)


def test_context_parallelism_divides_frames_and_weights():
    shared = activation_bytes(ACTIVATIONS, ParallelConfig(), MeshSizes(1, context_parallel_size=2))
    assert shared["LLM blocks"] == 4 * 900
    assert shared["encoder"] == 50, "each peer has all of it"
    layout = Layout(MeshSizes(2, 2, context_parallel_size=2), True)
    assert layout.divisors_of(Part("llm", trained=Count(8))) == (8, 4)
    assert layout.divisors_of(Part("perception", trained=Count(8), sharding="encoder")) == (8, 8)
    meshes = [layout.sizes for layout in all_layouts(8, 2)]
    assert all(sizes.world_size == 8 and sizes.context_parallel_size == 2 for sizes in meshes)
    assert MeshSizes(4, 1, 4, 2) in meshes, "a copy on each pair of peers"


def test_context_parallel_peers_compute_heads_and_encoder_alike():
    gpu = GPUS["h100-80gb"]
    one, two = (
        estimate_speed(WORK, PARTS, Training(), Layout(MeshSizes(1, context_parallel_size=cp), True), gpu, 8).compute_s
        for cp in (1, 2)
    )
    heads_and_encoder = two - (one - two)
    flops = flops_of_step(WORK)
    heads = 6 * 20 * 300 / (gpu.peak_flops * CONSTANTS["llm_efficiency"].value)
    assert heads_and_encoder == pytest.approx(
        heads + flops.encoder / (gpu.peak_flops * CONSTANTS["encoder_efficiency"].value)
    )


def test_every_mesh_is_listed_once():
    sizes = [layout.sizes for layout in all_layouts(8)]
    assert len(set(sizes)) == len(sizes)
    assert {(s.data_parallel_size, s.tensor_parallel_size) for s in sizes} == {(8, 1), (4, 2), (2, 4), (1, 8)}
    assert all(s.world_size == 8 for s in sizes)
    assert MeshSizes(8, 1, 4) in sizes
    assert MeshSizes(8, 1, 8) not in sizes, "a whole copy on each process"


def test_margin():
    gpu = GPUS["h100-80gb"]
    activations = Activations(int(70 * GIB), 0, (), 0)
    layout = Layout(MeshSizes(1), False)
    assert fits(estimate_memory([], activations, Training(), layout), gpu)
    assert not fits(estimate_memory([], Activations(int(73 * GIB), 0, (), 0), Training(), layout), gpu)


def test_an_unknown_gpu_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"h100-80g: did you mean h100-80gb\? known are a100-40gb"):
        find_gpu("h100-80g")
    assert all(gpu.source for gpu in GPUS.values())
    assert all(known.source for known in CONSTANTS.values())


def test_flops():
    flops = flops_of_step(WORK, num_recomputed_blocks=2)
    attention = 2 * 20 * 10 * 16 * 4  # forward of 4 blocks: two products of [T, T] / 2 by 16, for each of 20 frames
    assert flops.llm == 6 * 20 * 1300 + 3 * attention
    assert flops.encoder == 15000
    assert flops.recomputed == (2 * 20 * 1000 + attention) / 2
    assert mfu(flops, 2.0, GPUS["h100-80gb"]) == (flops.llm + 15000) / (2 * 989.4e12)


def test_frozen_weights_have_no_gradients():
    frozen = Work(**{**vars(WORK), "block_params": 0, "frozen_block_params": 1000})
    assert flops_of_step(WORK).llm - flops_of_step(frozen).llm == 2 * 20 * 1000


def test_bytes_sent():
    one_part = [Part("llm", trained=Count(matrices=1000))]
    training = Training(**BF16, reduce_bytes=4)
    # Two gathers in bf16, one reduction in float32, 7/8 of each sent on.
    assert data_parallel_bytes(one_part, training, Layout(MeshSizes(8), True)) == Sent(1000 * (2 + 2 + 4) * 7 / 8)
    assert data_parallel_bytes(one_part, training, Layout(MeshSizes(8), False)).everyone == 2 * 1000 * 2 * 7 / 8
    assert data_parallel_bytes(one_part, training, Layout(MeshSizes(1, 8), True)) == Sent()
    # Two copies of four shards: the float32 gradients of a shard are summed with the other copy's.
    copies = data_parallel_bytes(one_part, training, Layout(MeshSizes(8, 1, 2), True))
    assert copies == Sent(shards=1000 * 8 * 3 / 4, copies=2 * 1000 * 4 / 4 / 2)
    encoder = [Part("perception", trained=Count(matrices=100), sharding="encoder")]
    assert data_parallel_bytes(encoder, training, Layout(MeshSizes(4, 2), True)) == Sent(everyone=100 * 8 * 7 / 8)
    # Four sums of [2, 10, 8] in bf16 a block and two for a recomputed one; a sum sends 2 · (n - 1) / n of it.
    assert tensor_parallel_bytes(WORK, training, Layout(MeshSizes(1, 4), True), 4) == 2 * (16 + 8) * 20 * 8 * 2 * 3 / 4


def test_a_slow_network_costs_only_those_that_cross_it():
    gpu = GPUS["h100-80gb"]

    def speed(sizes: MeshSizes, gpus_per_node: int):
        return estimate_speed(WORK, PARTS, Training(), Layout(sizes, True), gpu, gpus_per_node)

    near, far = speed(MeshSizes(8), 8), speed(MeshSizes(8), 1)
    assert far.gather_s == pytest.approx(9 * near.gather_s), "450 against 50 GB/s"
    assert speed(MeshSizes(8), 4).gather_s == pytest.approx(450 / 200 * near.gather_s), "four network cards a node"
    assert far.compute_s == near.compute_s
    assert near.audio_s_per_s == pytest.approx(8 * 2 * 0.8 / near.step_s)
    assert speed(MeshSizes(8, 1, 2), 4).gather_s < speed(MeshSizes(8), 4).gather_s, "a copy in each node"
    assert speed(MeshSizes(2, 4), 4).tensor_parallel_s < speed(MeshSizes(2, 4), 2).tensor_parallel_s
