"""What an estimate takes as given: GPUs, links, and the shares of their peaks that training reaches. One table each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU as its maker's datasheet states it; `memory_bytes` is what CUDA reports, a little less than is printed."""

    name: str
    memory_bytes: int
    peak_flops: float  # dense bf16 with float32 sums, a second
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second and direction, to the other GPUs of its node
    network_bandwidth: float  # bytes a second and direction, to other nodes: one network card a GPU
    source: str


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40gb", int(39.4 * GIB), 312e12, 1.555e12, 300e9, 25e9, "NVIDIA A100 datasheet (SXM); 200 Gb/s HDR"),
        Gpu("a100-80gb", int(79.2 * GIB), 312e12, 2.039e12, 300e9, 25e9, "NVIDIA A100 datasheet (SXM); 200 Gb/s HDR"),
        Gpu("h100-80gb", int(79.1 * GIB), 989.4e12, 3.35e12, 450e9, 50e9, "NVIDIA H100 datasheet (SXM); 400 Gb/s NDR"),
        Gpu("h200-141gb", int(139.8 * GIB), 989.4e12, 4.8e12, 450e9, 50e9, "NVIDIA H200 datasheet; 400 Gb/s NDR"),
        Gpu("b200-180gb", int(178 * GIB), 2250e12, 7.7e12, 900e9, 50e9, "NVIDIA DGX B200 datasheet; 400 Gb/s NDR"),
        Gpu("l40s-48gb", int(44.4 * GIB), 362e12, 0.864e12, 32e9, 25e9, "NVIDIA L40S datasheet; PCIe 4 x16"),
    )
}


@dataclass(frozen=True)
class Constant:
    """A number that no config states, with where it comes from."""

    value: float
    unit: str
    meaning: str
    source: str


CONSTANTS = {
    "llm_efficiency": Constant(
        0.30, "of the dense bf16 peak", "matrix products of the LLM and heads",
        "a 1.1 B LLM, 16 × 20 s, forward and backward in 88 ms on one H100, eager; larger ones reach more",
    ),
    "encoder_efficiency": Constant(
        0.03, "of the dense bf16 peak", "the streaming encoder: small layers, bound by launches",
        "a FastConformer of 17 + 2 layers, 16 × 20 s, forward and backward in 114 ms on one H100, eager",
    ),
    "link_efficiency": Constant(
        0.70, "of a link's bandwidth", "collectives of tens of MB", "assumed: what NCCL's own tests reach on such sizes"
    ),
    "margin": Constant(
        0.08, "of the GPU's memory", "left free for fragmentation and uneven batches", "assumed: measure to tighten it"
    ),
    "cuda_context": Constant(0.6 * GIB, "bytes", "CUDA context and kernels, outside torch's allocator", "assumed"),
    "nccl": Constant(0.7 * GIB, "bytes", "NCCL's buffers, outside torch's allocator; 0 on one GPU", "assumed"),
    "workspace": Constant(0.03 * GIB, "bytes", "cuBLAS workspace on Hopper, 32 MiB", "PyTorch's CUDA semantics page"),
    "pcie_bandwidth": Constant(25e9, "bytes a second", "to host memory and back, for cpu_offload", "PCIe 4 x16, 80 %"),
}  # fmt: skip


def constant(name: str) -> float:
    """The value of a named constant."""
    return CONSTANTS[name].value


def gpu_of_device(name: str) -> Gpu | None:
    """The GPU that CUDA calls `name`, such as "NVIDIA H100 80GB HBM3"; None if its peak isn't known.

    The table has SXM modules: their cards for PCIe have lower peaks, and parts of a GPU (MIG) too.
    """
    words = name.lower().replace("-", " ").split()
    if not {"pcie", "nvl", "mig"}.isdisjoint(words):
        return None
    named = [gpu for gpu in GPUS.values() if gpu.name.partition("-")[0] in words]
    return next((gpu for gpu in named if gpu.name.partition("-")[2] in words), named[0] if named else None)


def find_gpu(name: str) -> Gpu:
    """The GPU of this name.

    Raises:
        ValueError: it isn't in the table; the message lists those that are.
    """
    if name not in GPUS:
        near = difflib.get_close_matches(name, GPUS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"--gpu is {name}: {hint}known are {', '.join(GPUS)} (add yours in s2s_parallel/gpus.py)")
    return GPUS[name]


def peak_bytes() -> int:
    """The most that tensors took on the current GPU since torch's peak was reset, and what CUDA graphs keep beside it.

    Torch counts a graph's memory as free once it is captured, though no other tensor can have it. Takes some ms.
    """
    import torch

    held = 0
    for segment in torch.cuda.memory_snapshot():
        if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0):
            held += segment["total_size"] - segment["allocated_size"]
    return torch.cuda.max_memory_allocated() + held
