"""What a benchmark has found: a JSON that grows, the figures that follow, and tables."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from s2s_parallel.gpus import gpu_of_device


class Report:
    """Figures by name, on disk after each `put`; an error in a section is kept, and the next goes on."""

    def __init__(self, path: Path) -> None:
        self.shown: dict[str, Any] = {}
        self.failed: list[str] = []
        self._path = path
        self._began = time.monotonic()

    def put(self, value: Any, *place: str) -> None:
        """Keep, print and write a value under its name, within those before it: put(3.1, "ours", "decode")."""
        within = self.shown
        for name in place[:-1]:
            within = within.setdefault(name, {})
        within[place[-1]] = value
        self.shown["seconds"] = round(time.monotonic() - self._began, 1)
        print(json.dumps({"at_s": self.shown["seconds"], ", ".join(place): value}), flush=True)
        self._path.write_text(json.dumps(self.shown, indent=1))

    def fail(self, what: str) -> None:
        """Let the run end with an error."""
        self.failed.append(what)
        self.put(self.failed, "failed")

    @contextmanager
    def guarded(self, section: str) -> Iterator[None]:
        """An error within is kept under the section's name."""
        try:
            yield
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self.fail(f"{section}: {type(error).__name__}: {str(error)[:300]}")


def device_traits(device: str) -> dict[str, Any]:
    """What it runs on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    gpu = gpu_of_device(name)
    return {"device": name, "torch": torch.__version__, "peak_flops": gpu.peak_flops if gpu else None}


def derive(shown: dict[str, Any]) -> dict[str, Any]:
    """Throughput, MFU, the floor's share and ratios of both models, by case."""
    counts, peak = shown.get("ours", {}).get("counts"), shown["run"]["peak_flops"]
    floor = shown.get("floor")
    cases: list[dict[str, Any]] = []
    for who in ("nemo", "ours"):
        for stored, by_case in shown.get(who, {}).get("train", {}).items():
            for case, figures in by_case.items():
                cases.append({"who": who, "agent": stored, "case": case} | _rates(figures, case, counts, peak, floor))
    return {"train": cases, "frame_floor_ms": _frame_floor_ms(counts, floor)}


def _rates(
    figures: dict[str, Any], case: str, counts: dict[str, Any] | None, peak: float | None, floor: dict[str, Any] | None
) -> dict[str, Any]:
    if "ms" not in figures:
        return {"out_of_memory": True, "peak_gib": figures["peak_gib"]}
    second = figures["ms"] / 1000
    rates = {
        "ms": figures["ms"],
        "audio_s_per_s": round(figures["audio_s"] / second, 1),
        "frames_per_s": round(figures["audio_s"] / 0.08 / second),
        "peak_gib": figures["peak_gib"],
    }
    flops = counts["flops"][case] if counts else None
    if flops and peak:
        rates["mfu"] = round(flops / second / peak, 4)
    if flops and floor and counts:
        steps = figures.get("batches", 1)
        floor_s = flops / floor["flops_per_s"] + steps * counts["bytes_of_step"] / floor["bytes_per_s"]
        rates["floor_ms"] = round(floor_s * 1000, 2)
    return rates


def _frame_floor_ms(counts: dict[str, Any] | None, floor: dict[str, Any] | None) -> float | None:
    return round(counts["bytes_of_frame"] / floor["bytes_per_s"] * 1000, 4) if counts and floor else None
