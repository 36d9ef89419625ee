"""Whole runs of the app at peer size: the time to the first step, and whether the data keep up.

    python -m benchmarks.gpu_fit --out gpu_fit.json
    python -m benchmarks.gpu_fit --out gpu_fit.json --runs uniform --set parallel.compile=false
    python -m benchmarks.gpu_fit --size tiny --device cpu --out tiny.json

Writes an LLM's weights and Shars of noise with stored codes, and calls `python -m s2s_train fit` on them. `cold`: five
steps with an empty compile cache, `warm`: the same with the cache that it left; seconds from the process's start to its
first finished step are told. `uniform`: dialogues of 20 s; `mixed`: of 5 to 20 s, in buckets; both log audio-seconds a
second and the share of time that training waited for data. The app's lines are shown as they come. Exit code 1: a run
failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Timer
from typing import Any

import yaml

from benchmarks.fit_corpus import write_shar
from benchmarks.gpu_report import Report, device_traits
from benchmarks.peer_size import (
    CODEC_HZ,
    FAST,
    FAST_OPTIMIZER,
    SIZES,
    SOURCE_HZ,
    Size,
    model_section,
    write_llm_weights,
    write_parts,
)

RUNS = ("cold", "warm", "uniform", "mixed")
SHORT = {"trainer.max_steps": 5, "trainer.log_every_n_steps": 1}
LOG_EVERY = 10  # steps
UNSETTLED = 2  # log lines that the steady figures leave out
SHOWN = ("audio_s_per_s", "data_wait_share", "mfu", "memory_gib", "padding_share")


def main() -> int:
    """Write the data, then run the app; return the exit code."""
    args = parse()
    size = SIZES[args.size]
    report = Report(Path(args.out))
    report.put(device_traits(args.device) | {"size": args.size, "set": args.set, "workers": args.workers}, "run")
    with tempfile.TemporaryDirectory() as folder:
        with report.guarded("data"):
            began = time.monotonic()
            write_parts(Path(folder), size)
            write_llm_weights(Path(folder), args.device)
            for name, shortest_s, share in (("uniform", size.decode_s, 0.25), ("mixed", size.shortest_s, 1.0)):
                number = math.ceil(share * args.dialogues)
                write_shar(Path(folder), name, shortest_s, size.decode_s, number, size.llm["vocab_size"])
            report.put(round(time.monotonic() - began, 1), "data_written_s")
        if not report.failed:
            for name in args.runs:
                with report.guarded(name):
                    report.put(run(Path(folder), name, size, args), name)
    return 1 if report.failed else 0


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="gpu_fit.json")
    parser.add_argument("--size", default="tinyllama", choices=list(SIZES))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--steps", type=int, default=80, help="of `uniform` and `mixed`")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument(
        "--dialogues",
        type=int,
        default=1000,
        help="of `mixed`; of `uniform`, which `cold` and `warm` train on too, a quarter",
    )
    parser.add_argument("--limit-s", type=float, default=300.0, help="end a run after so long")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of the config, as fit takes them")
    args = parser.parse_args()
    fewest = LOG_EVERY * (UNSETTLED + 1)
    if args.steps < fewest:
        parser.error(f"--steps is {args.steps}: the first {fewest - LOG_EVERY} are left out, so give at least {fewest}")
    return args


def run(folder: Path, name: str, size: Size, args: argparse.Namespace) -> dict[str, Any]:
    """One call of `fit`: when its first logged step was done, and what it logged once it had settled.

    Raises:
        RuntimeError: it ended with an error, or took too long; the message has the end of its output.
    """
    is_short = name in ("cold", "warm")
    changes = {"name": name} | (SHORT if is_short else {})
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config(folder, "mixed" if name == "mixed" else "uniform", size, args)))
    command = [sys.executable, "-u", "-m", "s2s_train", "fit", str(path)]
    command += [*(f"{key}={value}" for key, value in changes.items()), *args.set]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
    began = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    timer = Timer(args.limit_s, os.killpg, (process.pid, signal.SIGKILL))  # its workers too
    timer.start()
    lines: list[str] = []
    first_s, told = 0.0, ""
    assert process.stdout is not None
    for line in process.stdout:
        print(f"{name}: {line}", end="", flush=True)
        lines.append(line)
        if line.startswith("first step after "):
            told = line.strip()
        if line.startswith("step ") and not first_s:
            first_s = time.monotonic() - began
    code = process.wait()
    timer.cancel()
    if code:
        raise RuntimeError(f"fit ended with {code} after {time.monotonic() - began:.0f} s: {''.join(lines)[-1500:]}")
    whole = {"whole_run_s": round(time.monotonic() - began, 1)}
    if is_short:
        return {"seconds_to_first_step": round(first_s, 1), "told": told} | whole
    return steady(folder / "runs" / name / "metrics.jsonl") | whole


def steady(metrics: Path) -> dict[str, Any]:
    """Medians of what was logged, and the longest wait for data."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    logged = [line for line in lines if "audio_s_per_s" in line][UNSETTLED:]
    medians = {name: round(statistics.median(line[name] for line in logged), 4) for name in SHOWN if name in logged[-1]}
    return medians | {
        "longest_data_wait_share": round(max(line["data_wait_share"] for line in logged), 4),
        "log_lines": len(logged),
    }


def config(folder: Path, data: str, size: Size, args: argparse.Namespace) -> dict[str, Any]:
    """A run's config: no validation and no checkpoints; a window of the loader holds 1000 dialogues."""
    cuda = args.device == "cuda"
    batching: dict[str, Any] = {"batch_size": int(size.batch_duration_s / size.decode_s)}
    if data == "mixed":
        bins = {"bucket_duration_bins": list(size.bins_s[:-1])}
        batching = {"batch_duration": size.batch_duration_s, "use_bucketing": True} | bins
    return {
        "model": model_section(folder, size, {"lr": 1e-4} | (FAST_OPTIMIZER if cuda else {}))
        | {"pretrained_weights": True},
        "data": {
            "source_sample_rate": SOURCE_HZ,
            "target_sample_rate": CODEC_HZ,
            "train_ds": {
                "shar_path": str(folder / data),
                "num_workers": args.workers,
                "pin_memory": cuda,
                "shuffle_buffer_size": 200,
                **batching,
            },
        },
        "trainer": {
            "accelerator": "gpu" if cuda else "cpu",
            "devices": 1,
            "precision": "bf16-true" if cuda else "32-true",
            "max_steps": args.steps,
            "log_every_n_steps": LOG_EVERY,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "gradient_clip_val": 1.0,
            "enable_model_summary": False,
        },
        "parallel": FAST if cuda else {},
        "exp_manager": {"exp_dir": str(folder / "runs"), "create_checkpoint_callback": False},
    }


if __name__ == "__main__":
    raise SystemExit(main())
