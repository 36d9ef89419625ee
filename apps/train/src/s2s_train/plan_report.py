"""How a plan is printed."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from s2s_parallel.estimate import Layout
from s2s_parallel.gpus import CONSTANTS, GIB, constant
from s2s_parallel.speed import flops_of_step
from s2s_train.plan import Option, Plan

WIDTH = 120  # where the output is no terminal


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Print parameters, bytes of a GPU, every mesh, and what all of it rests on."""
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_parts(plan))
    console.print(_memory(plan))
    if plan.configured.layout.sizes.world_size > 1:
        console.print(_options(plan))
    for line in (*_refusals(plan), _verdict(plan), *plan.notes):
        _say(console, line)
    console.print(_constants(plan))


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def _parts(plan: Plan) -> Table:
    memory = plan.configured.memory
    table = Table(title=f"parameters, and bytes per GPU: {describe(plan.configured.layout)}")
    for column in ("part", "trained", "frozen", "weights", "gradients", "optimizer"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part in plan.sizes.parts:
        sizes = (gib(kept[part.name]) for kept in (memory.weights, memory.gradients, memory.optimizer))
        table.add_row(part.name, f"{part.trained.total:,}", f"{part.frozen.total:,}", *sizes)
    sums = (gib(sum(kept.values())) for kept in (memory.weights, memory.gradients, memory.optimizer))
    trained, frozen = (sum(getattr(part, kind).total for part in plan.sizes.parts) for kind in ("trained", "frozen"))
    table.add_section()
    table.add_row("sum", f"{trained:,}", f"{frozen:,}", *sums)
    return table


def _memory(plan: Plan) -> Table:
    memory = plan.configured.memory
    table = Table(title=f"bytes per GPU: {describe(plan.configured.layout)}")
    table.add_column("what")
    table.add_column("GiB", justify="right")
    table.add_row("weights, gradients, optimizer", gib(memory.kept))
    for name, size in memory.activations.items():
        table.add_row(f"activations: {name}", gib(size))
    table.add_row("gathered weights, their gradients, copies", gib(memory.gathered))
    table.add_row("cuBLAS workspace", gib(memory.fixed))
    table.add_section()
    table.add_row("torch.cuda.max_memory_allocated", gib(memory.allocated))
    if memory.validating:
        table.add_row("  in validation, with all weights gathered", gib(memory.allocated_in_validation))
    table.add_row("CUDA context, NCCL", gib(memory.outside))
    table.add_section()
    table.add_row("needed", gib(memory.total))
    free = plan.gpu.memory_bytes * (1 - constant("margin"))
    table.add_row(f"{plan.gpu.name} less {constant('margin'):.0%}", gib(free))
    if memory.host:
        table.add_row("host memory of each process (cpu_offload)", gib(memory.host))
    return table


def _options(plan: Plan) -> Table:
    world_size = plan.configured.layout.sizes.world_size
    cp = plan.configured.layout.sizes.context_parallel_size
    contexts = f", context_parallel {cp}" if cp > 1 else ""
    table = Table(title=f"meshes of {world_size} × {plan.gpu.name}{contexts}")
    for column in ("data_parallel", "tensor_parallel", "replicate", "GiB per GPU", "fits", "step s", "audio-s/s"):
        table.add_column(column, justify="right")
    table.add_column("")
    for option in plan.options:
        sizes = option.layout.sizes
        named = [str(n) for n in (sizes.data_parallel_size, sizes.tensor_parallel_size, sizes.replicate_size)]
        if option.refused:
            table.add_row(*named, *["–"] * 4, "refused")
            continue
        figures = [gib(option.memory.total), "yes" if option.fits else "no", f"{option.speed.step_s:.3g}"]
        remark = "best" if option is plan.recommended else ""
        table.add_row(*named, *figures, f"{option.speed.audio_s_per_s:,.0f}", remark)
    return table


def _refusals(plan: Plan) -> list[str]:
    """Each reason once: meshes of one tensor parallel size have it in common."""
    return list(dict.fromkeys(f"refused: {option.refused}" for option in plan.options if option.refused))


def _verdict(plan: Plan) -> str:
    configured, best = plan.configured, plan.recommended
    words = f"as configured ({describe(configured.layout)}): {_outcome(configured, plan)}"
    if not configured.usable and best is None:
        return f"{words}. No mesh fits: try {_advice(plan)}"
    if best is None or best.layout.sizes == configured.layout.sizes:
        return words
    sizes = best.layout.sizes
    contexts = f" trainer.strategy.context_parallel_size={sizes.context_parallel_size}"
    contexts = contexts if sizes.context_parallel_size > 1 else ""
    return (
        f"{words}. Recommended: {describe(best.layout)} (trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy"
        f" trainer.strategy.tensor_parallel_size={sizes.tensor_parallel_size}"
        f" trainer.strategy.replicate_size={sizes.replicate_size}{contexts})"
    )


def _advice(plan: Plan) -> str:
    """What would help, of what isn't set yet."""
    training, memory = plan.training, plan.configured.memory
    steps = []
    if training.weight_bytes == 4:
        steps.append("trainer.precision=bf16-true")
    if memory.allocated_in_validation > memory.allocated:
        steps.append("a larger trainer.strategy.tensor_parallel_size (validation gathers all weights)")
    else:
        if training.parallel.activation_checkpointing == "none":
            steps.append("parallel.activation_checkpointing=full")
        steps.append("a smaller batch")
        if not training.parallel.cpu_offload:
            steps.append("parallel.cpu_offload=true")
    return ", ".join([*steps, "or more GPUs"])


def _outcome(option: Option, plan: Plan) -> str:
    if option.refused:
        return f"refused, {option.refused}"
    speed = option.speed
    work = flops_of_step(plan.sizes.work)
    return (
        f"{'fits' if option.fits else 'does not fit'}, {gib(option.memory.total)} GiB; a step of about"
        f" {speed.step_s:.3g} s (computing {speed.compute_s:.3g}, gathering beside it {speed.gather_s:.3g}, tensor"
        f" parallel sums {speed.tensor_parallel_s:.3g}, optimizer {speed.optimizer_s:.3g}), {work.model:.3g} FLOPs a"
        " data parallel process"
    )


def _constants(plan: Plan) -> Table:
    table = Table(title="what this rests on")
    for column in ("constant", "value", "source"):
        table.add_column(column)
    gpu = plan.gpu
    rates = f"{gpu.peak_flops / 1e12:g} TFLOP/s, {gpu.link_bandwidth / 1e9:g} and {gpu.network_bandwidth / 1e9:g} GB/s"
    table.add_row(f"{gpu.name}: dense bf16, link, network", rates, gpu.source)
    for name, known in CONSTANTS.items():
        value = f"{known.value / GIB:.2f} GiB" if known.unit == "bytes" else f"{known.value:g} {known.unit}"
        table.add_row(name, value, f"{known.meaning}: {known.source}")
    return table


def describe(layout: Layout) -> str:
    """A layout in words."""
    sizes = layout.sizes
    if not layout.sharded:
        return "1 GPU" if sizes.world_size == 1 else f"{sizes.world_size} GPUs, a copy of the weights on each"
    contexts = f" × context_parallel {sizes.context_parallel_size}" if sizes.context_parallel_size > 1 else ""
    copies = f", {sizes.replicate_size} copies" if sizes.replicate_size > 1 else ""
    return f"data_parallel {sizes.data_parallel_size}{contexts} × tensor_parallel {sizes.tensor_parallel_size}{copies}"


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}" if size < GIB * 1000 else f"{size / GIB:,.0f}"
