"""How long a step should take: floating point operations, and the bytes that processes send each other.

Shapes: `B` dialogues on a data parallel process, `T` frames (80 ms), `N` valid frames, `H` hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2s_parallel.estimate import Layout, Part, Training, is_recomputed
from s2s_parallel.gpus import Gpu, constant


@dataclass(frozen=True)
class Work:
    """What a step computes on one data parallel process.

    `block_params` and `frozen_block_params` are those of the LLM's layers that a token meets (of a mixture of experts,
    the chosen ones).
    """

    batch_size: int
    num_frames: int  # T
    duration_s: float  # of one dialogue
    block_params: int
    frozen_block_params: int
    head_params: int
    num_blocks: int
    attention_width: int  # heads × their size
    hidden_size: int
    encoder_forward_flops: float
    encoder_is_trained: bool = True

    @property
    def tokens(self) -> int:
        """Frames of the batch."""
        return self.batch_size * self.num_frames


@dataclass(frozen=True)
class StepFlops:
    """Floating point operations of a step on one data parallel process; `recomputed` don't count in MFU."""

    llm: float
    encoder: float
    recomputed: float

    @property
    def model(self) -> float:
        """What MFU counts."""
        return self.llm + self.encoder


def flops_of_step(work: Work, num_recomputed_blocks: int = 0) -> StepFlops:
    """Operations of forward and backward: 6 a trained weight and token (4 a frozen one), and attention's.

    Attention is causal: half of T × T. Embeddings are look-ups and count nothing.
    """
    attention = 2 * work.tokens * work.num_frames * work.attention_width  # forward of one block: 4 · T²/2 · width
    dense = 2 * work.tokens * (work.block_params + work.frozen_block_params)
    forward = dense + attention * work.num_blocks
    weight_gradients = 2 * work.tokens * work.block_params
    input_gradients = dense + 2 * attention * work.num_blocks
    return StepFlops(
        llm=forward + weight_gradients + input_gradients + 6 * work.tokens * work.head_params,
        encoder=work.encoder_forward_flops * (3 if work.encoder_is_trained else 1),
        recomputed=forward * num_recomputed_blocks / max(work.num_blocks, 1),
    )


def mfu(flops: StepFlops, step_time_s: float, gpu: Gpu, tensor_parallel_size: int = 1) -> float:
    """Model FLOPs utilisation: the share of the GPUs' dense bf16 peak that a measured step reached."""
    return flops.model / (step_time_s * gpu.peak_flops * tensor_parallel_size)


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, and where they go. Gathering runs beside computing, tensor parallelism's sums don't."""

    compute_s: float
    gather_s: float
    tensor_parallel_s: float
    optimizer_s: float
    audio_s_per_step: float

    @property
    def step_s(self) -> float:
        """The whole step."""
        return max(self.compute_s, self.gather_s) + self.tensor_parallel_s + self.optimizer_s

    @property
    def audio_s_per_s(self) -> float:
        """Seconds of dialogue trained on in a second, over all processes."""
        return self.audio_s_per_step / self.step_s


def estimate_speed(
    work: Work, parts: Sequence[Part], training: Training, layout: Layout, gpu: Gpu, gpus_per_node: int
) -> Speed:
    """The time of a step without stalls of data, checkpoints and validation."""
    recomputed = sum(is_recomputed(i, training.parallel) for i in range(work.num_blocks))
    flops = flops_of_step(work, recomputed)
    sizes = layout.sizes
    of_heads = 6 * work.tokens * work.head_params  # context parallel peers compute all of these
    of_llm = (flops.llm - of_heads + flops.recomputed) / sizes.context_parallel_size + of_heads
    compute = of_llm / (gpu.peak_flops * constant("llm_efficiency") * sizes.tensor_parallel_size)
    compute += flops.encoder / (gpu.peak_flops * constant("encoder_efficiency"))
    sent = data_parallel_bytes(parts, training, layout)
    tp, shards = sizes.tensor_parallel_size, sizes.shard_size
    gather = (
        sent.shards / _bandwidth(gpu, shards, tp, gpus_per_node)
        + sent.copies / _bandwidth(gpu, sizes.replicate_size, shards * tp, gpus_per_node)
        + sent.everyone / _bandwidth(gpu, sizes.world_size, 1, gpus_per_node)
    )
    reduced = tensor_parallel_bytes(work, training, layout, recomputed)
    trained_here = sum(p.trained.total / layout.divisors_of(p)[0] for p in parts)
    # AdamW reads weights, gradients and moments, and writes all but the gradients.
    stepped = trained_here * training.weight_bytes * (3 + 2 * training.moments)
    bandwidth = constant("pcie_bandwidth") if training.parallel.cpu_offload else gpu.memory_bandwidth
    return Speed(
        compute_s=compute,
        gather_s=gather,
        tensor_parallel_s=reduced / _bandwidth(gpu, tp, 1, gpus_per_node),
        optimizer_s=stepped / bandwidth,
        audio_s_per_step=sizes.data_parallel_size * work.batch_size * work.duration_s,
    )


@dataclass(frozen=True)
class Sent:
    """Bytes that a process sends for weights and gradients, by who it sends them to."""

    shards: float = 0.0  # those that share a copy of the LLM
    copies: float = 0.0  # those with the same shard of another copy
    everyone: float = 0.0  # for the encoder; under DDP for all


def data_parallel_bytes(parts: Sequence[Part], training: Training, layout: Layout) -> Sent:
    """What a process sends: a ring over n sends (n - 1) / n of what it gathers or reduces."""
    sizes = layout.sizes
    if not layout.sharded:
        trained = sum(p.trained.total for p in parts) * training.weight_bytes
        return Sent(everyone=2 * trained * _ring(sizes.data_parallel_size))
    gathers = 2 if training.parallel.reshard_after_forward else 1
    moved, reduced = {"llm": 0.0, "encoder": 0.0, "whole": 0.0}, 0.0
    for part in parts:
        whole = sizes.tensor_parallel_size if part.sharding == "llm" else 1
        gradients = part.trained.total / whole * training.reduce_bytes
        moved[part.sharding] += part.total / whole * training.compute_bytes * gathers + gradients
        reduced += gradients if part.sharding == "llm" else 0
    return Sent(
        shards=moved["llm"] * _ring(sizes.shard_size),
        copies=2 * reduced / sizes.shard_size * _ring(sizes.replicate_size),  # HSDP adds up the copies' gradients
        everyone=moved["encoder"] * _ring(sizes.world_size),
    )


def tensor_parallel_bytes(work: Work, training: Training, layout: Layout, num_recomputed_blocks: int) -> float:
    """Bytes that a process sends within blocks: two sums of [B, T, H] forward, two backward, two more if recomputed."""
    sums = 4 * work.num_blocks + 2 * num_recomputed_blocks
    frames = work.tokens * work.hidden_size * training.compute_bytes / layout.sizes.context_parallel_size
    return 2 * sums * frames * _ring(layout.sizes.tensor_parallel_size)


def _ring(processes: int) -> float:
    return (processes - 1) / processes


def _bandwidth(gpu: Gpu, processes: int, stride: int, gpus_per_node: int) -> float:
    """What a GPU of a group sends a second; the group's members lie `stride` apart.

    Between nodes a collective uses the network cards of all its members, so a group with several on each node sends as
    much as these cards together, and no more than the link within the node.
    """
    if processes * stride <= gpus_per_node:
        return gpu.link_bandwidth * constant("link_efficiency")
    members = max(gpus_per_node // stride, 1)
    return min(gpu.link_bandwidth, gpu.network_bandwidth * members) * constant("link_efficiency")
