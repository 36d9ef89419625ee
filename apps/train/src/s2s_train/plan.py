"""`plan`: what a run will take of each GPU and how fast it should be, before it is started."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from s2s_data.config import TrainDataConfig
from s2s_model.config import ModelConfig
from s2s_model.sizes import NetworkSizes, codec_sizes, measure_network
from s2s_model.unloaded import CodecSizes
from s2s_model.weights import check_dtype
from s2s_parallel.config import ParallelConfig
from s2s_parallel.context_parallel import check_context_parallel
from s2s_parallel.estimate import Layout, Memory, Training, all_layouts, estimate_memory, fits
from s2s_parallel.gpus import Gpu, find_gpu
from s2s_parallel.mesh import MeshSizes, resolve_mesh
from s2s_parallel.registry import plan_for
from s2s_parallel.speed import Speed, estimate_speed
from s2s_parallel.tensor_parallel import check_sizes
from s2s_train.config import AppConfig, mesh_arguments, mesh_sizes

ASSUMED_CODEC = CodecSizes(8, 4032)
SAME_SPEED = 0.05  # estimates are no better than that


@dataclass(frozen=True)
class PlanArgs:
    """The command's arguments beside the config."""

    gpu: str = "h100-80gb"
    world_size: int | None = None
    gpus_per_node: int = 8
    batch_size: int | None = None
    duration_s: float | None = None
    codec: str | None = None  # "8x4032"


@dataclass(frozen=True)
class Option:
    """One way of sharing the work; `refused` says why it can't be."""

    layout: Layout
    memory: Memory
    speed: Speed
    fits: bool
    refused: str | None

    @property
    def usable(self) -> bool:
        """Whether a run could use it."""
        return self.fits and self.refused is None


@dataclass(frozen=True)
class Plan:
    """All that is printed. `configured` is what the config asks for, `options` are the meshes of that world size."""

    gpu: Gpu
    batch_size: int
    duration_s: float
    sizes: NetworkSizes
    training: Training
    configured: Option
    options: list[Option]
    notes: list[str]

    @property
    def recommended(self) -> Option | None:
        """The fastest that fits; of those as good as equal, the one with less tensor parallelism and fewer copies."""
        usable = [option for option in self.options if option.usable]
        fastest = max((option.speed.audio_s_per_s for option in usable), default=0.0)
        near = [option for option in usable if option.speed.audio_s_per_s > (1 - SAME_SPEED) * fastest]
        return min(near, key=lambda option: _complexity(option.layout.sizes), default=None)


def _complexity(sizes: MeshSizes) -> tuple[int, int]:
    return sizes.tensor_parallel_size, sizes.replicate_size


def make_plan(cfg: AppConfig, args: PlanArgs = PlanArgs()) -> Plan:
    """Measure the model of `cfg` without its weights, and lay it out on GPUs.

    Raises:
        FileNotFoundError, ValueError: a model that isn't here, a batch of no stated size, or sizes of a mesh that
            don't fit; the message names the key or the flag.
    """
    gpu = find_gpu(args.gpu)
    batch_size, duration_s, where = batch_shape(cfg.data.train_ds, args.batch_size, args.duration_s)
    layout = configured_layout(cfg.trainer.strategy, _world_size(cfg, args))
    training, notes = training_of(cfg, layout)
    codec, codec_note = _codec(cfg.model, args.codec)
    compute = {4: torch.float32, 2: torch.bfloat16}[training.compute_bytes]
    sizes = measure_network(
        cfg.model,
        codec,
        batch_size=batch_size,
        duration_s=duration_s,
        frame_length_s=cfg.data.frame_length,
        dtype=compute,
        sample_rate_hz=cfg.data.source_sample_rate,
    )

    def option(layout: Layout) -> Option:
        memory = estimate_memory(sizes.parts, sizes.activations, training, layout)
        speed = estimate_speed(sizes.work, sizes.parts, training, layout, gpu, args.gpus_per_node)
        return Option(layout, memory, speed, fits(memory, gpu), _refusal(layout, sizes, cfg.parallel))

    meshes = all_layouts(layout.sizes.world_size, layout.sizes.context_parallel_size)
    options = [option(each) for each in meshes]
    batch = f"batch: {batch_size} dialogues of {duration_s:g} s on each data parallel process ({where})"
    return Plan(gpu, batch_size, duration_s, sizes, training, option(layout), options, [batch, *codec_note, *notes])


def batch_shape(data: TrainDataConfig, batch_size: int | None, duration_s: float | None) -> tuple[int, float, str]:
    """Dialogues of a batch, seconds of each, and where that was said.

    Raises:
        ValueError: flags and `data.train_ds` leave one of them open.
    """
    bins = [float(b[0] if isinstance(b, (list, tuple)) else b) for b in data.bucket_duration_bins or []]
    if batch_size is None and duration_s is None and data.bucket_batch_size and bins:
        size, longest = max(zip(data.bucket_batch_size, bins, strict=False), key=lambda pair: pair[0] * pair[1])
        return size, longest, "the largest of data.train_ds.bucket_batch_size × bucket_duration_bins"
    said = []
    if duration_s is None:
        duration_s, key = (data.max_duration, "max_duration") if data.max_duration else (max(bins, default=0), "bins")
        if not duration_s:
            raise ValueError(
                "how long a dialogue is isn't said: give --duration SECONDS, or data.train_ds.max_duration"
            )
        said.append("data.train_ds.max_duration" if key == "max_duration" else "the last of bucket_duration_bins")
    else:
        said.append("--duration")
    if batch_size is not None:
        said.append("--batch-size")
    else:
        batch_size, key = _batch_size(data, duration_s)
        said.append(f"data.train_ds.{key}")
    if batch_size < 1 or duration_s <= 0:
        raise ValueError(f"a batch of {batch_size} dialogues of {duration_s:g} s: both must be above 0")
    return batch_size, duration_s, ", ".join(said)


def configured_layout(strategy: Any, world_size: int) -> Layout:
    """What `trainer.strategy` asks for with so many processes.

    Raises:
        ValueError: the mesh's sizes don't make them up.
    """
    mesh = mesh_arguments(strategy)
    if mesh is None:
        return Layout(MeshSizes(world_size), sharded=False)
    return Layout(resolve_mesh(world_size, **mesh_sizes(mesh)), sharded=True)


def training_of(cfg: AppConfig, layout: Layout) -> tuple[Training, list[str]]:
    """Bytes of a number, and notes on what was assumed."""
    notes, parallel = [], cfg.parallel
    precision = str(cfg.trainer.precision or "32-true")
    weight_bytes = 2 if precision in ("bf16-true", "16-true") else 4
    autocast = precision.endswith("-mixed") or precision in ("bf16", "16")
    compute_bytes = 2 if autocast else weight_bytes
    if layout.sharded and parallel.param_dtype is not None:
        compute_bytes = check_dtype(parallel.param_dtype).itemsize
    if autocast:
        notes.append(f"trainer.precision={precision}: counted as if all were computed in 2 bytes; norms take more")
    moments, copies, note = _optimizer(cfg.model.optimizer)
    if compute_bytes == 4:
        notes.append("times are those of bf16: computing in float32 takes several times as long")
    if parallel.cpu_offload:
        notes.append("parallel.cpu_offload: the optimizer's time on the host is taken as that of PCIe alone")
    notes.append("codes are taken as stored with the data: encoding them in the run takes time and memory of its own")
    strategy = cfg.trainer.strategy
    as_view = isinstance(strategy, Mapping) and bool(strategy.get("gradient_as_bucket_view"))
    reduce_bytes = check_dtype(parallel.reduce_dtype).itemsize if parallel.reduce_dtype else compute_bytes
    training = Training(
        weight_bytes=weight_bytes,
        compute_bytes=compute_bytes,
        reduce_bytes=reduce_bytes,
        moments=moments,
        optimizer_copies=copies,
        autocast=autocast,
        ddp_buckets=layout.sizes.world_size > 1 and not layout.sharded and not as_view,
        validates=cfg.trainer.limit_val_batches != 0 and bool(cfg.data.validation_ds.datasets),
        accumulates=cfg.trainer.accumulate_grad_batches > 1,
        parallel=parallel,
    )
    return training, notes + ([note] if note else [])


def _optimizer(section: Mapping[str, Any]) -> tuple[int, int, str | None]:
    """Numbers kept for each weight, copies made while stepping, and a note where that is a guess."""
    name = str(section.get("_target_")).rpartition(".")[2]
    copies = 0 if section.get("fused") or section.get("foreach") is False else 1
    if name == "SGD":
        return (1 if section.get("momentum") else 0), copies, None
    if name in ("Adam", "AdamW", "NAdam", "RAdam"):
        return 3 if section.get("amsgrad") else 2, copies, None
    return 2, copies, f"model.optimizer: {name} isn't known here, 2 numbers for each weight are assumed, as AdamW keeps"


def _batch_size(data: TrainDataConfig, duration_s: float) -> tuple[int, str]:
    if data.batch_duration is not None:
        counted = duration_s + (duration_s**2 / data.quadratic_duration if data.quadratic_duration else 0)
        most = max(int(data.batch_duration / counted), 1)
        return min(most, data.batch_size or most), "batch_duration"
    if data.batch_size is not None:
        return data.batch_size, "batch_size"
    raise ValueError("how many dialogues a batch has isn't said: give --batch-size, or data.train_ds.batch_size")


def _refusal(layout: Layout, sizes: NetworkSizes, parallel: ParallelConfig) -> str | None:
    """Why the LLM can't be shared so, where its config tells."""
    tp, config = layout.sizes.tensor_parallel_size, sizes.llm_config
    try:
        if layout.sizes.context_parallel_size > 1:
            check_context_parallel(config)
        if tp == 1:
            return None
        plan_for(config)
        check_sizes(config, tp, parallel.uneven_heads)
    except ValueError as error:
        return str(error)
    for key in ("hidden_size", "intermediate_size"):
        size = getattr(config, key, None)
        if isinstance(size, int) and size % tp:
            return f"trainer.strategy.tensor_parallel_size ({tp}) must divide the LLM's {key} ({size})"
    return None


def _world_size(cfg: AppConfig, args: PlanArgs) -> int:
    if args.world_size is not None:
        if args.world_size < 1:
            raise ValueError(f"--world-size is {args.world_size}: give 1 or more")
        return args.world_size
    devices = cfg.trainer.devices
    if isinstance(devices, list):
        return len(devices) * cfg.trainer.num_nodes
    if str(devices).isdigit() and int(devices) > 0:
        return int(devices) * cfg.trainer.num_nodes
    raise ValueError(f"trainer.devices is {devices}, which depends on the machine: give --world-size, or a number")


def _codec(model: ModelConfig, stated: str | None) -> tuple[CodecSizes, list[str]]:
    if stated is not None:
        match = re.fullmatch(r"(\d+)x(\d+)", stated)
        if match is None or not all(int(number) for number in match.groups()):
            raise ValueError(f"--codec is {stated!r}: give codebooks x entries of each, such as 8x4032")
        return CodecSizes(int(match[1]), int(match[2])), [f"codec: not counted (--codec {stated} gives its shape only)"]
    name = model.pretrained_audio_codec
    try:
        return codec_sizes(model), []
    except ValueError as error:
        if name.endswith(".nemo") or Path(name).expanduser().exists() or "no codec" not in str(error):
            raise
    K = model.audio_codec_num_codebooks or ASSUMED_CODEC.num_codebooks
    C = ASSUMED_CODEC.codebook_size
    return CodecSizes(K, C), [
        f"codec: not counted (not found here: {name}); {K} codebooks of {C} entries are assumed: give --codec KxENTRIES"
    ]
