"""How many bytes of each GPU a run takes: arithmetic on counts that the model's side measured.

Shapes: `B` dialogues on a data parallel process, `T` frames (80 ms), `H` hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from s2s_parallel.config import ParallelConfig
from s2s_parallel.gpus import Gpu, constant
from s2s_parallel.mesh import MeshSizes, divisors

Sharding = Literal["llm", "encoder", "whole"]


@dataclass(frozen=True)
class Count:
    """Numbers in weights: `matrices`, which tensor parallelism splits, and `vectors`, which it copies."""

    matrices: int = 0
    vectors: int = 0

    @property
    def total(self) -> int:
        """All numbers."""
        return self.matrices + self.vectors


@dataclass(frozen=True)
class Part:
    """A part of the model.

    `sharding`: "llm" is sharded over data, context and tensor parallelism, "encoder" over all processes, "whole" not at
    all. `largest_unit` is the number of weights that FSDP gathers at once: a layer, or a whole embedding.
    """

    name: str
    trained: Count
    frozen: Count = Count()
    sharding: Sharding = "llm"
    largest_unit: int = 0
    bytes_per_number: int | None = None  # of a part that keeps its own dtype; None: the weights'

    @property
    def total(self) -> int:
        """Parameters."""
        return self.trained.total + self.frozen.total


@dataclass(frozen=True)
class BlockActivations:
    """Bytes that backward needs of one LLM layer, on one GPU alone.

    Tensor parallelism divides `inside` (heads, the MLP's width). `residual` (norms, sums) is divided by sequence
    parallelism only, and `gathered` (what attention and MLP read, [B, T, H]) by neither.
    """

    input: int
    residual: int
    gathered: int
    inside: int
    products: int = 0  # of the matrix products inside: kept by selective recomputation
    outputs: int = 0  # of attention and MLP [B, T, H]: kept too


@dataclass(frozen=True)
class Activations:
    """Bytes that backward needs of a batch, on one GPU alone."""

    encoder: int
    other: int  # the sum of embeddings, the last norm, positions
    blocks: tuple[BlockActivations, ...]
    heads: int  # the most that logits, losses and their gradients take at a time
    hidden: int = 0  # what the heads read [N, H]


@dataclass(frozen=True)
class Training:
    """What a config says about the bytes of a number. `moments` numbers are kept by the optimizer for each weight."""

    weight_bytes: int = 4
    compute_bytes: int = 4
    reduce_bytes: int = 4
    moments: int = 2
    optimizer_copies: int = 1  # of the weights, while a foreach optimizer steps
    autocast: bool = False  # keeps the weights cast to bf16 beside them
    ddp_buckets: bool = False  # DDP copies gradients into buckets
    validates: bool = True  # sharded weights are gathered for it
    accumulates: bool = False  # gradients of a step's earlier batches are there in forward; otherwise they are freed
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


@dataclass(frozen=True)
class Layout:
    """How processes share the work; `sharded` False: each has all weights (one GPU, DDP)."""

    sizes: MeshSizes
    sharded: bool

    def divisors_of(self, part: Part) -> tuple[int, int]:
        """By how much the part's matrices and its vectors are divided."""
        if not self.sharded or part.sharding == "whole":
            return 1, 1
        if part.sharding == "encoder":
            return self.sizes.world_size, self.sizes.world_size
        return self.sizes.shard_size * self.sizes.tensor_parallel_size, self.sizes.shard_size


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU; the first three by part."""

    weights: dict[str, int]
    gradients: dict[str, int]
    optimizer: dict[str, int]
    activations: dict[str, int]
    gathered: int  # FSDP's blocks in flight, autocast's copies, DDP's buckets
    stepping: int  # the optimizer's temporaries, when no activations are left
    fixed: int
    outside: int  # CUDA and NCCL: not in torch's figures
    validating: int = 0  # the LLM's weights whole, for validation: beside what is kept, no activations
    host: int = 0  # bytes of host memory a process, with cpu_offload
    accumulates: bool = False  # gradients of a step's earlier batches are there in forward

    @property
    def kept(self) -> int:
        """Weights, gradients and optimizer."""
        return sum(self.weights.values()) + sum(self.gradients.values()) + sum(self.optimizer.values())

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated` would say: at the end of forward, or in the optimizer's step."""
        gradients = sum(self.gradients.values())
        forward = sum(self.activations.values()) + self.gathered + (gradients if self.accumulates else 0)
        return self._resting + max(forward, gradients + self.stepping)

    @property
    def allocated_in_validation(self) -> int:
        """The same for validation, in which there are no gradients."""
        return self._resting + self.validating

    @property
    def _resting(self) -> int:
        return self.kept - sum(self.gradients.values()) + self.fixed

    @property
    def total(self) -> int:
        """What the GPU has to have."""
        return max(self.allocated, self.allocated_in_validation) + self.outside


def estimate_memory(parts: Sequence[Part], activations: Activations, training: Training, layout: Layout) -> Memory:
    """Bytes of one GPU for a training step."""
    weights, gradients, optimizer = {}, {}, {}
    host = 0
    for part in parts:
        size = part.bytes_per_number or training.weight_bytes
        trained = _share(part.trained, part, layout)
        kept = (_share(part.frozen, part, layout) + trained) * size, trained * size, trained * size * training.moments
        offloaded = training.parallel.cpu_offload and layout.sharded and part.sharding != "whole"
        host += sum(kept) if offloaded else 0
        weights[part.name], gradients[part.name], optimizer[part.name] = (0, 0, 0) if offloaded else kept
    on_gpu = sum(gradients.values())
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activation_bytes(activations, training.parallel, layout.sizes),
        gathered=_gathered(parts, training, layout),
        stepping=on_gpu * training.optimizer_copies,
        fixed=int(constant("workspace")),
        outside=int(constant("cuda_context") + (constant("nccl") if layout.sizes.world_size > 1 else 0)),
        validating=_whole_llm(parts, training, layout) if training.validates else 0,
        host=host,
        accumulates=training.accumulates,
    )


def fits(memory: Memory, gpu: Gpu) -> bool:
    """Whether it leaves the margin free."""
    return memory.total <= gpu.memory_bytes * (1 - constant("margin"))


def activation_bytes(activations: Activations, parallel: ParallelConfig, sizes: MeshSizes) -> dict[str, int]:
    """Bytes of one GPU, by part, at the step's largest moment.

    That is either the end of forward, with the logits, or the backward of a recomputed block, when they are gone.
    Context parallelism divides what blocks keep; the keys and values that attention gathers aren't counted.
    """
    tp, cp = sizes.tensor_parallel_size, sizes.context_parallel_size
    sp = tp if parallel.sequence_parallel else 1
    kept, again = 0, 0
    for index, block in enumerate(activations.blocks):
        full = _saved(block, sp, tp) // cp
        stays = kept_bytes(block, index, parallel, tp) // cp
        kept += stays
        again = max(again, full - stays)
    return {
        "encoder": activations.encoder,
        "embeddings and norms": activations.other // sp,
        "LLM blocks": kept,
        "heads and losses, or a block computed again": activations.hidden + max(activations.heads // tp, again),
    }


def is_recomputed(index: int, parallel: ParallelConfig) -> bool:
    """Whether block `index`, from 0, is computed again in backward; selective recomputation doesn't count."""
    mode = parallel.activation_checkpointing
    return mode == "full" or (isinstance(mode, int) and not isinstance(mode, bool) and index % mode == 0)


def kept_bytes(block: BlockActivations, index: int, parallel: ParallelConfig, tensor_parallel_size: int) -> int:
    """What stays of a block between forward and backward."""
    tp = tensor_parallel_size
    sp = tp if parallel.sequence_parallel else 1
    if is_recomputed(index, parallel):
        return block.input // sp
    if parallel.activation_checkpointing == "selective":
        return block.input // sp + block.outputs // sp + block.products // tp
    return _saved(block, sp, tp)


def _saved(block: BlockActivations, sp: int, tp: int) -> int:
    """What autograd saves of a block that isn't recomputed."""
    return block.residual // sp + block.gathered + block.inside // tp


def all_layouts(world_size: int, context_parallel_size: int = 1) -> list[Layout]:
    """Every mesh of `world_size` processes: by tensor parallel size, then by copies of the weights."""
    places = world_size // context_parallel_size
    return [
        Layout(MeshSizes(places // tp, tp, copies, context_parallel_size), sharded=True)
        for tp in divisors(places)
        for copies in divisors(places // tp)
        if copies == 1 or copies < world_size // tp  # a copy on each process is DDP's layout
    ]


def _share(count: Count, part: Part, layout: Layout) -> int:
    matrices, vectors = layout.divisors_of(part)
    return -(-count.matrices // matrices) + -(-count.vectors // vectors)


def _whole_llm(parts: Sequence[Part], training: Training, layout: Layout) -> int:
    if not layout.sharded:
        return 0
    numbers = sum(part.total for part in parts if part.sharding == "llm") // layout.sizes.tensor_parallel_size
    return (numbers + sum(part.total for part in parts if part.sharding == "encoder")) * training.compute_bytes


def _gathered(parts: Sequence[Part], training: Training, layout: Layout) -> int:
    """Weights that are whole for a while, with the gradients of the unit whose backward runs."""
    if not layout.sharded:
        trained = sum(part.trained.total for part in parts)
        weights = sum(part.total for part in parts if part.sharding != "whole")
        return (2 * weights if training.autocast else 0) + (trained * training.weight_bytes * training.ddp_buckets)
    kept = sum(part.total for part in parts if part.sharding == "encoder") * training.compute_bytes
    kept = kept if layout.sizes.world_size > 1 or training.compute_bytes != training.weight_bytes else 0
    if layout.sizes.shard_size == 1 and training.compute_bytes == training.weight_bytes:
        return kept
    tp, parallel = layout.sizes.tensor_parallel_size, training.parallel
    llm = [part for part in parts if part.sharding == "llm"]
    blocks = max((p.largest_unit for p in llm if p.name == "llm"), default=0) // tp * training.compute_bytes
    largest = max((p.largest_unit for p in llm), default=0) // tp
    unit = largest * (training.compute_bytes + max(training.compute_bytes, training.reduce_bytes))
    if parallel.reshard_after_forward:
        return kept + unit + parallel.prefetch_blocks * blocks
    return kept + unit + sum(part.total for part in llm) // tp * training.compute_bytes
