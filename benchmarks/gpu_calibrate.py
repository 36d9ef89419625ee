"""Calibrated batches beside the true limit, a run with them, and where its steps' time goes, for a peer-sized model.

    python -m benchmarks.gpu_calibrate --out calibrate.json
    python -m benchmarks.gpu_calibrate --gpu-gib 80 --out calibrate.json    all of the GPU: takes longer

TinyLlama-1.1B's shape with FastConformer-L at random weights and stored codes, on bins of 5, 10 and 20 s. `calibrate`
gets 95 % of --gpu-gib, and "by hand" sizes grow from what it found until the allocator refuses the whole. Then 30 steps
take the bins in turn, beside plain `batch_duration`, mixed and in the same buckets. Without a GPU, `--size tiny
--device cpu --gpu-gib 1.2` runs all of it.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.gpu_parallel import LLMS, model_config, synchronize, write_parts
from s2s_data.synthetic_batch import Bin, SyntheticBatches
from s2s_train.calibrate import STORED, CalibrateArgs, Calibrated, calibrate
from s2s_train.calibrate_memory import Memory, is_out_of_memory, memory_of
from s2s_train.calibrate_report import print_calibration
from s2s_train.calibrate_steps import Trials
from s2s_train.composition import build_model
from s2s_train.config import AppConfig, load_config
from s2s_train.profile_config import ProfileConfig
from s2s_train.profile_steps import StepProfiler
from s2s_train.trainer import build_trainer

SHARE = 0.95
WARM_UP = 3  # steps that throughput leaves out

Batch = Mapping[str, Any]


def main() -> None:
    """Run all parts; write what they showed after each."""
    args = parse()
    torch.set_float32_matmul_precision("medium")
    began = time.monotonic()
    shown: dict[str, Any] = {"gpu_gib": args.gpu_gib, "torch": torch.__version__}
    if args.device == "cuda":
        shown["device"] = torch.cuda.get_device_name()

    def show(name: str, value: Any) -> None:
        shown[name] = value
        shown["seconds"] = round(time.monotonic() - began)
        print(json.dumps({name: value}), flush=True)
        Path(args.out).write_text(json.dumps(shown, indent=1))

    with tempfile.TemporaryDirectory() as folder:
        cfg = app_config(Path(folder), args)
        found = calibrate(cfg, CalibrateArgs(bins_s=args.bins, memory_gib=SHARE * args.gpu_gib, stored="codes"), model)
        print_calibration(found)
        sizes = {each.bin.duration_s: each.batch_size for each in found.sized}
        show("calibrated", sizes)
        free()
        show("by_hand", by_hand(cfg, found, args))

        def run() -> None:
            compare(cfg, sizes, show)
            free()
            show("profile", look_into(cfg, sizes, args))

        memory(cfg, args).run_limited(run)


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="calibrate.json", help="the trace goes beside it")
    parser.add_argument("--size", default="tinyllama", choices=list(LLMS))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--gpu-gib", type=float, default=40.0, help="what the GPU is taken to have")
    parser.add_argument("--bins", type=float, nargs="+", default=[5.0, 10.0, 20.0], help="seconds")
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    args.bins = tuple(args.bins)
    return args


def app_config(folder: Path, args: argparse.Namespace) -> AppConfig:
    """The config of a run on one device."""
    write_parts(folder, args)
    cuda = args.device == "cuda"
    trainer = {
        "accelerator": "gpu" if cuda else "cpu",
        "devices": 1,
        "precision": "bf16-true" if cuda else "32-true",
        "max_steps": args.steps,
        "gradient_clip_val": 1.0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({"model": model_config(folder, args), "trainer": trainer}))
    return load_config(path)


def model(cfg: AppConfig) -> LightningModule:
    """Weights are drawn where they are used, which is faster."""
    torch.manual_seed(0)
    with torch.device("cuda" if cfg.trainer.accelerator == "gpu" else "cpu"):
        return build_model(cfg)


def memory(cfg: AppConfig, args: argparse.Namespace) -> Memory:
    """The whole of what the GPU is taken to have."""
    return memory_of(torch.device(args.device, 0), 1.0, args.gpu_gib)


def batches_of(cfg: AppConfig, trained: Any) -> SyntheticBatches:
    codec = trained.audio_codec
    return SyntheticBatches(cfg.data, trained.tokenizer, STORED["codes"], codec.num_codebooks, codec.codebook_size)


def trainer_of(cfg: AppConfig, *callbacks: Callback) -> Trainer:
    return build_trainer(cfg.trainer, loggers=[], callbacks=callbacks, root_dir=tempfile.gettempdir())


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class UpwardSearch(Callback):
    """Grows each bin's batch by 1 % at a time until a step really fails."""

    def __init__(self, found: Calibrated, make_memory: Callable[[], Memory], batches: SyntheticBatches) -> None:
        self._found = found
        self._make_memory = make_memory
        self._batches = batches
        self._trials: Trials | None = None
        self.largest: dict[float, int] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        assert self._trials is not None
        self._trials.note_activations()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        memory = self._make_memory()
        self._trials = Trials(trainer, memory, self._batches.make)
        for each in self._found.sized:
            size = each.batch_size
            while self._trials.of(each.bin, size + max(1, size // 100)).fits:
                size += max(1, size // 100)
            self.largest[each.bin.duration_s] = size
        trainer.should_stop = True


def by_hand(cfg: AppConfig, found: Calibrated, args: argparse.Namespace) -> dict[str, Any]:
    """The true limits, and calibrated sizes as a share of them."""
    trained: Any = model(cfg)
    search = UpwardSearch(found, lambda: memory(cfg, args), batches_of(cfg, trained))
    trainer_of(cfg, search).fit(trained, DataLoader(Steps([{}]), batch_size=None))
    ratios = {each.bin.duration_s: each.batch_size / search.largest[each.bin.duration_s] for each in found.sized}
    return {"largest": search.largest, "calibrated_share": {key: round(ratio, 3) for key, ratio in ratios.items()}}


class Steps(IterableDataset[Any]):
    """Batches in turn, without end."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from map(dict, self._batches)


class Throughput(Callback):
    """Seconds of real audio per second, the device synchronised at both ends."""

    def __init__(self) -> None:
        self._audio_s, self._began = 0.0, 0.0
        self.audio_s_per_s = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 == WARM_UP:
            synchronize()
            self._began = time.perf_counter()
        elif batch_idx + 1 > WARM_UP:
            self._audio_s += float(batch["source_audio_lens"].sum()) / 16000

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize()
        self.audio_s_per_s = round(self._audio_s / (time.perf_counter() - self._began), 1)


def compare(cfg: AppConfig, sizes: dict[float, int], show: Callable[[str, Any], None]) -> None:
    """Throughput of the calibrated batches and of `batch_duration`, as large as the longest bin's batch."""
    longest = max(sizes)
    audio_s = sizes[longest] * longest
    in_turn = [Bin(list(sizes)[place % len(sizes)]) for place in range(sizes[longest])]
    cases: dict[str, Callable[[SyntheticBatches], list[Batch]]] = {
        "calibrated": lambda make: [make.make(size, Bin(bin_s)) for bin_s, size in sizes.items()],
        "batch_duration, mixed": lambda make: [make.mixed(in_turn)],
        "batch_duration, in buckets": lambda make: [make.make(int(audio_s / bin_s), Bin(bin_s)) for bin_s in sizes],
    }
    for name, batches in cases.items():
        free()
        show(f"train {name}", train(cfg, batches))


def train(cfg: AppConfig, batches: Callable[[SyntheticBatches], list[Batch]]) -> dict[str, Any]:
    """Steps on `batches` in turn, and what ended them."""
    trained: Any = model(cfg)
    clock = Throughput()
    trainer = trainer_of(cfg, clock)
    try:
        trainer.fit(trained, DataLoader(Steps(batches(batches_of(cfg, trained))), batch_size=None))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {"out_of_memory_at_step": trainer.global_step}
    return {"steps_without_oom": trainer.global_step, "audio_s_per_s": clock.audio_s_per_s}


def look_into(cfg: AppConfig, sizes: dict[float, int], args: argparse.Namespace) -> dict[str, Any]:
    """The parts of three steps on the longest bin, and the kernels that take most of them."""
    trained: Any = model(cfg)
    folder = Path(args.out).resolve().parent / "profile"
    profiler = StepProfiler(ProfileConfig([5, 8]), folder)
    cfg.trainer.max_steps = profiler.steps.stop
    longest = max(sizes)
    batches = [batches_of(cfg, trained).make(sizes[longest], Bin(longest))]
    trainer_of(cfg, profiler).fit(trained, DataLoader(Steps(list(batches)), batch_size=None))
    assert profiler.times is not None
    times = {part: round(spent, 3) for part, spent in profiler.times.parts_ms.items()}
    return {
        "dialogues": sizes[longest],
        "duration_s": longest,
        "step_ms": round(profiler.times.step_ms, 2),
        "parts_ms": times,
        "longest_ms_a_step": longest_running(folder / "trace.rank0.json.gz", len(profiler.steps)),
    }


def longest_running(trace: Path, num_steps: int) -> dict[str, float]:
    """The fifteen kernels (on a CPU operations, children included) that take most, milliseconds a step."""
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    cat = "kernel" if any(e.get("cat") == "kernel" for e in events) else "cpu_op"
    spent: Counter[str] = Counter()  # of floats, for most_common
    for e in events:
        if e.get("cat") == cat and e.get("ph") == "X":
            spent[e["name"][:100]] += e["dur"] / 1000 / num_steps
    return {name: round(ms, 3) for name, ms in spent.most_common(15)}


if __name__ == "__main__":
    main()
