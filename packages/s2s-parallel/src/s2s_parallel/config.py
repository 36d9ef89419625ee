"""The `parallel` section of a config: how a model is laid out on its devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

UNEVEN_HEADS = ("refuse", "gather")
RECOMPUTE_MODES = ("none", "full", "selective")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ParallelConfig:
    """How blocks are shared between devices, recomputed and compiled; `trainer.strategy` says how many devices."""

    sequence_parallel: bool = True  # under tensor parallelism, frames are shared too between a block's matrices
    uneven_heads: str = "refuse"  # attention heads that tensor_parallel_size doesn't divide: refuse, or gather them
    activation_checkpointing: Any = "none"  # none, full, selective (all but matrix products), or N: every Nth block
    compile: bool = False  # torch.compile each block: slow first steps, faster ones after that
    activation_memory_budget: float = 1.0  # share of activations that compiled blocks keep; the cheapest are recomputed
    encoder_memory_budget: float = 1.0  # the same for the encoder's
    cuda_graphs: bool = False  # on one GPU: replay a step's kernels by one launch each way, for each size of batch
    param_dtype: str | None = None  # what FSDP computes in, e.g. bfloat16 over float32 weights; null: the weights' own
    reduce_dtype: str | None = "float32"  # what FSDP adds up gradients in; null: that of the gradients
    reshard_after_forward: bool = True  # free the LLM's gathered blocks until backward: less memory, gathered twice
    prefetch_blocks: int = 1  # blocks that FSDP gathers ahead of their turn
    cpu_offload: bool = False  # keep weights, gradients and optimizer in host memory: slow, for what doesn't fit


def check_config(config: ParallelConfig) -> None:
    """Refuse values that mean nothing.

    Raises:
        ValueError: with the key, the value and what would work.
    """
    if config.uneven_heads not in UNEVEN_HEADS:
        raise ValueError(f"parallel.uneven_heads is {config.uneven_heads!r}: use {' or '.join(UNEVEN_HEADS)}")
    mode = config.activation_checkpointing
    if mode not in RECOMPUTE_MODES and not (isinstance(mode, int) and not isinstance(mode, bool) and mode >= 1):
        raise ValueError(
            f"parallel.activation_checkpointing is {mode!r}: use none, full, selective, or a number N from 1 up (every"
            " Nth block)"
        )
    for key in ("param_dtype", "reduce_dtype"):
        value = getattr(config, key)
        if value is not None and value not in DTYPES:
            raise ValueError(f"parallel.{key} is {value!r}: use null or one of {', '.join(DTYPES)}")
    for key in ("activation_memory_budget", "encoder_memory_budget"):
        share = getattr(config, key)
        if not 0 <= share <= 1:
            raise ValueError(f"parallel.{key} is {share}: use a share from 0 to 1")
        if share < 1 and not config.compile:
            raise ValueError(
                f"parallel.{key} is {share}, which the compiler sees to: set parallel.compile=true, or use"
                " parallel.activation_checkpointing"
            )
    if config.prefetch_blocks < 1:
        raise ValueError(f"parallel.prefetch_blocks is {config.prefetch_blocks}: use 1 or more")


def check_layout(config: ParallelConfig, *, sharded: bool, tensor_parallel: bool) -> None:
    """Refuse what the strategy can't do.

    Args:
        config: checked.
        sharded: whether there is a mesh, on which FSDP acts; False: one device, or DDP.
        tensor_parallel: whether it has tensor parallel peers.

    Raises:
        ValueError: with the key and what would work.
    """
    for key in ("param_dtype", "cpu_offload"):
        if getattr(config, key) and not sharded:
            raise ValueError(
                f"parallel.{key} is what FSDP does, and this strategy keeps whole weights on each device: set"
                " trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy (one device will do), or leave"
                f" parallel.{key} out"
            )
    if config.cuda_graphs and sharded:
        raise ValueError(
            "parallel.cuda_graphs is for one GPU, whose weights stay where they are, and this strategy gathers them in"
            " each step: set parallel.cuda_graphs=false, or trainer.strategy=auto with trainer.devices=1"
        )
    if tensor_parallel and config.cpu_offload:
        raise ValueError(
            "parallel.cpu_offload keeps weights that FSDP shards in host memory, not those of tensor parallelism: set"
            " trainer.strategy.tensor_parallel_size=1, or parallel.cpu_offload=false"
        )
    if tensor_parallel and config.compile and config.activation_checkpointing == "selective":
        raise ValueError(
            "parallel.activation_checkpointing=selective sees no operations inside what parallel.compile compiles under"
            " tensor parallelism: use full, none or a number, or parallel.compile=false"
        )
