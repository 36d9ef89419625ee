"""What a frame costs in generation and in a live session, for a peer-sized model: eager, as a CUDA graph, and compiled.

    python -m benchmarks.gpu_decode --out decode.json
    python -m benchmarks.gpu_decode --out decode.json --size tiny --device cpu

TinyLlama-1.1B's shape with FastConformer-L and a codec of 93 M parameters, at random weights. First, in float32, that
all three ways choose the same tokens; then, in bf16, milliseconds a frame of recordings of 20 s by part, kernels by
torch.profiler, and pushes of sessions, the longest of ten minutes. Parts that don't begin within --seconds are left
out, and said to be.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peer_size import CODEBOOKS, FRAME_S, SIZES, SOURCE_SAMPLES, model_section, write_parts
from benchmarks.timing import memory_mib, percentile, synchronize, timed_ms
from s2s_model import DuplexS2SModel
from s2s_model.generation import DecoderPool, generate
from s2s_model.sampling import GenerationConfig, Sampling

WAYS = ("eager", "graph", "compiled")


class Bench:
    """The model, and what was shown of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = torch.device(args.device)
        self.cuda = args.device == "cuda"
        self.frames = 251 if self.cuda else 20
        self.shown: dict[str, Any] = {"torch": torch.__version__}
        self.began = time.perf_counter()
        if self.cuda:
            self.shown["device"] = torch.cuda.get_device_name()

    def show(self, name: str, value: Any) -> None:
        """Print a line, and write all so far."""
        self.shown[name] = value
        self.shown["seconds"] = round(time.perf_counter() - self.began, 1)
        print(f"[{self.shown['seconds']:6.1f}] {json.dumps({name: value})}", flush=True)
        Path(self.args.out).write_text(json.dumps(self.shown, indent=1))

    def part(self, name: str, run: Callable[[], Any]) -> None:
        """Run and show one part; a failure is shown too."""
        if time.perf_counter() - self.began > self.args.seconds:
            self.show(name, "left out: no time")
            return
        try:
            self.show(name, run())
        except Exception as error:  # the parts after it are still worth their time
            traceback.print_exc()
            self.show(name, {"error": f"{type(error).__name__}: {str(error)[:300]}"})
        gc.collect()

    # --- parts -----------------------------------------------------------------------------------------------

    def build(self, folder: Path) -> Any:
        """Build the model in float32, on the device."""
        size = SIZES[self.args.size]
        write_parts(folder, size)
        torch.manual_seed(0)
        with self.device:
            self.model = DuplexS2SModel(model_section(folder, size, {})).eval()
        self.model.to(self.device)
        return memory_mib()

    def source(self, batch_size: int, num_frames: int) -> Tensor:
        """Encoded user frames."""
        generator = torch.Generator().manual_seed(batch_size)
        noise = torch.randn(batch_size, num_frames, self.model.audio_head.in_features, generator=generator)
        return noise.to(self.device, self.model.audio_head.weight.dtype)

    def answer(self, way: str, source_BTH: Tensor, config: GenerationConfig, seed: int = 0) -> Any:
        """Generate in one of the three ways."""
        generator = torch.Generator(self.device).manual_seed(seed)
        if way == "eager":
            parts = self.model.frame_model()._replace(why_eager="it is measured so")
            return generate(parts, DecoderPool(), source_BTH, config, generator)
        return self.model.generate(source_BTH, config, generator, compile=way == "compiled")

    def parity(self, num_frames: int, ways: tuple[str, ...] = WAYS) -> dict[str, Any]:
        """Shares of tokens and codes equal to eager's, greedy and drawn; a second run replays from its first frame."""
        source_BTH = self.source(2, num_frames)
        warm = Sampling(temperature=0.8, top_k=50)
        shown = {}
        for name, config in {"greedy": GenerationConfig(), "drawn": GenerationConfig(text=warm, audio=warm)}.items():
            base = self.answer("eager", source_BTH, config)
            for way in ways[1:]:
                for run in ("first", "second"):
                    other = self.answer(way, source_BTH, config)
                    text = (base.text_BT == other.text_BT).float().mean().item()
                    codes = (base.codes_BTK == other.codes_BTK).float().mean().item()
                    shown[f"{name} {way} {run}"] = [round(text, 4), round(codes, 4)]
        self.model.release_graphs()
        return shown

    def llm(self, way: str, batch_size: int) -> dict[str, Any]:
        """Milliseconds a frame of `generate` alone."""
        num_frames = 24 if way == "eager" else self.frames
        source_BTH = self.source(batch_size, num_frames)
        began = time.perf_counter()
        self.answer(way, source_BTH, GenerationConfig())
        synchronize()
        first_s = time.perf_counter() - began
        taken = median_ms(lambda: self.answer(way, source_BTH, GenerationConfig()), 1 if way == "eager" else 3)
        return {"ms_per_frame": round(taken / num_frames, 3), "first_s": round(first_s, 2)}

    def offline(self, batch_size: int, compile: bool) -> dict[str, Any]:
        """Milliseconds a frame of `offline_inference`, all in, and its parts."""
        model, T = self.model, self.frames
        audio_BS = (torch.randn(batch_size, (T - 1) * SOURCE_SAMPLES) * 0.1).to(self.device)
        lens_B = torch.full((batch_size,), audio_BS.shape[1], device=self.device)
        with torch.no_grad():
            source_BTH, frames_B = model.encode_source(audio_BS, lens_B)
            codes_BTK = torch.zeros(*source_BTH.shape[:2], CODEBOOKS, dtype=torch.long, device=self.device)
            whole = lambda: model.offline_inference(audio_BS, lens_B, compile=compile)  # noqa: E731
            whole()
            return {
                "ms_per_frame": round(median_ms(whole) / T, 3),
                "perception": round(median_ms(lambda: model.encode_source(audio_BS, lens_B)) / T, 3),
                "LLM": round(median_ms(lambda: model.generate(source_BTH, compile=compile)) / T, 3),
                "codec": round(median_ms(lambda: model.audio_codec.decode(codes_BTK, frames_B)) / T, 3),
                "mib": memory_mib(),
            }

    def session(self, batch_size: int, num_frames: int, compile: bool) -> dict[str, Any]:
        """Milliseconds a push of one frame; memory before, within and after."""
        gc.collect()
        before = memory_mib()
        chunk_BS = torch.randn(batch_size, SOURCE_SAMPLES) * 0.1
        began = time.perf_counter()
        session = self.model.open_session(batch_size, (num_frames + 2) * FRAME_S, compile=compile)
        synchronize()
        open_s = time.perf_counter() - began
        taken, memory = [], {}
        for t in range(num_frames):
            began = time.perf_counter()
            session.push(chunk_BS).audio_BR.cpu()
            taken.append((time.perf_counter() - began) * 1e3)
            if t + 1 in (60, num_frames // 2, num_frames):
                memory[t + 1] = memory_mib()
        steady = taken[40:] or taken
        fifth = max(len(taken) // 5, 1)
        parts = (*session._ear._hear.values(), session._mind._advance, session._voice._advance)
        return {
            "median_ms": round(statistics.median(steady), 3),
            "p99_ms": round(percentile(steady, 0.99), 3),
            "max_ms": round(max(steady), 3),
            "median_of_fifths": [round(statistics.median(taken[i * fifth : (i + 1) * fifth]), 3) for i in range(5)],
            "first_40_ms": [round(min(taken[:40]), 2), round(max(taken[:40]), 2)],
            "open_s": round(open_s, 2),
            "captured": [part.is_captured for part in parts],
            "codec_window": session._voice._width,
            "mib": {"before": before, **memory},
        }

    def profile(self, batch_size: int, compile: bool) -> dict[str, Any]:
        """Kernels and GPU milliseconds of each part of a push, and where they go."""
        session = self.model.open_session(batch_size, 20.0, compile=compile)
        chunk_BS = torch.randn(batch_size, SOURCE_SAMPLES, device=self.device) * 0.1
        for _ in range(40 if self.cuda else 2):
            session.push(chunk_BS)
        source_BH = self.source(batch_size, 1)[:, 0]
        codes_B1K = torch.zeros(batch_size, 1, CODEBOOKS, dtype=torch.long, device=self.device)
        return {
            "encoder, two frames": self.kernels(lambda: (session._ear.push(chunk_BS), session._ear.push(chunk_BS))),
            "LLM": self.kernels(lambda: session._mind.step(source_BH)),
            "codec": self.kernels(lambda: session._voice.push(codes_B1K)),
        }

    def kernels(self, run: Callable[[], Any], times: int = 4) -> dict[str, Any]:
        """Kernels a call, their milliseconds, and the eight that take most."""
        from torch.profiler import ProfilerActivity, profile

        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.cuda else [])
        with profile(activities=activities) as profiler:
            for _ in range(times):
                run()
            synchronize()
        totals: dict[str, list[float]] = {}
        for event in profiler.events() or []:
            if event.device_type.name == "CUDA":
                total = totals.setdefault(event.name[:90], [0, 0.0])
                total[0] += 1 / times
                total[1] += event.device_time / 1e3 / times
        top = sorted(totals.items(), key=lambda item: -item[1][1])[:8]
        return {
            "kernels": round(sum(count for count, _ in totals.values())),
            "gpu_ms": round(sum(ms for _, ms in totals.values()), 3),
            "top": {name: [round(count, 1), round(ms, 3)] for name, (count, ms) in top},
        }


def median_ms(run: Callable[[], Any], times: int = 3) -> float:
    """Median milliseconds of a call."""
    return statistics.median(timed_ms(run) for _ in range(times))


def main() -> None:
    """Run all parts."""
    args = parse()
    bench = Bench(args)
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        bench.part("build", lambda: bench.build(Path(folder)))
        bench.part("float32, equal share of text and codes", lambda: bench.parity(64 if bench.cuda else 12))
        if bench.cuda:
            bench.model.to(torch.bfloat16)
            torch.set_float32_matmul_precision("medium")
        for way in WAYS:
            bench.part(f"LLM alone, batch 8, {way}", partial(bench.llm, way, 8))
        bench.part("offline, batch 8, graph", lambda: bench.offline(8, False))
        bench.part("offline, batch 8, compiled", lambda: bench.offline(8, True))
        bench.part("bf16, equal share of text and codes", lambda: bench.parity(64 if bench.cuda else 12))
        short = 400 if bench.cuda else 24
        bench.part("session, batch 1, graph", lambda: bench.session(1, short, False))
        bench.part("profile, batch 1, graph", lambda: bench.profile(1, False))
        long = 7500 if bench.cuda else 40
        bench.part(f"session, batch 1, compiled, {long} frames", lambda: bench.session(1, long, True))
        bench.part("profile, batch 8, compiled", lambda: bench.profile(8, True))
        bench.part("session, batch 8, graph", lambda: bench.session(8, short, False))
        for way in WAYS:
            bench.part(f"LLM alone, batch 1, {way}", partial(bench.llm, way, 1))
        for compile in (False, True):
            for size in (1, 32):
                name = f"offline, batch {size}, {'compiled' if compile else 'graph'}"
                bench.part(name, partial(bench.offline, size, compile))
        before = memory_mib()
        bench.model.release_graphs()
        bench.show("memory before and after release_graphs", [before, memory_mib()])


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="decode.json")
    parser.add_argument("--size", default="tinyllama", choices=["tiny", "tinyllama"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=150, help="no part begins after that")
    return parser.parse_args()


if __name__ == "__main__":
    main()
