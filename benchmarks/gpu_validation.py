"""GPU memory before and after validations of the whole model with a scoring ASR, exceptions in the middle included.

    python -m benchmarks.gpu_validation --out validation.json
    python -m benchmarks.gpu_validation --device cpu --size tiny --frames 12

Trains a step, then validates again and again through Lightning: as it should be, with an exception inside the model,
and with one inside the recogniser (a NeMo transducer at random weights). Memory is that of torch's tensors, and what
the driver says is used.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from benchmarks.gpu_parallel import LLMS, Batches, batch, model_config, write_parts
from s2s_eval.config import ScoringConfig
from s2s_eval.scoring import ValidationScoring
from tests.s2s_eval.builders import Turn
from tests.s2s_eval.scoring_models import nemo_transducer

MIB = 2**20
CASES = ("first", "second", "model fails", "after it", "recogniser fails", "after that")


class Fails(Callback):
    """Raises in the second batch of a validation: before it, or within the recogniser."""

    def __init__(self) -> None:
        self.where = ""
        self.seen_loaded = False

    def on_validation_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        batch_idx = args[1]
        scoring = next(c for c in trainer.callbacks if isinstance(c, ValidationScoring))  # type: ignore[attr-defined]
        transcriber: Any = scoring.scorers.transcriber
        if batch_idx == 1:
            self.seen_loaded = transcriber.is_loaded
            if self.where == "model fails":
                raise RuntimeError("the model failed")
            if self.where == "recogniser fails":
                transcriber._model._module.encoder.register_forward_hook(_fail)


def _fail(*args: Any) -> None:
    raise RuntimeError("the recogniser failed")


def main() -> None:
    args = parse()
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder), args)
        results = measure(Path(folder), args)
    print(json.dumps(results, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1))
    raise SystemExit(not all(case["equal"] for case in results["cases"]))


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Return memory before and after each case."""
    from s2s_model import DuplexS2SModel

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16 if args.device == "cuda" else torch.float32)
    with torch.device(args.device):
        model = DuplexS2SModel(model_config(folder, args))
    torch.set_default_dtype(torch.float32)
    asr = nemo_transducer(folder / "rnnt.nemo", is_large=args.size != "tiny")
    config = ScoringConfig(str(asr), silence_dbfs=-200.0, write_report=False)
    data = batch(args.batch, args.frames, model) | {
        "turns": [[Turn("user", 0.1, 0.3, "two"), Turn("agent", 0.5, 0.4, "four")]] * args.batch,
        "target_texts": ["four"] * args.batch,
    }
    trainer(args, folder, config, Fails(), max_steps=1).fit(model, DataLoader(Batches(data), batch_size=None))
    cases = []
    for case in CASES:
        fails = Fails()
        fails.where = case
        fit = trainer(args, folder, config, fails)
        model.to(args.device)  # Lightning leaves one that it is done with on the CPU
        before = memory(args.device)
        error = ""
        try:
            fit.validate(model, DataLoader([{"set": data}] * 3, batch_size=None), verbose=False)  # type: ignore[arg-type]
        except RuntimeError as caught:
            error = str(caught).splitlines()[0]
        model.to(args.device)
        after = memory(args.device)
        assert fails.seen_loaded, "nothing was transcribed"
        assert bool(error) == ("fails" in case), (case, error)
        equal = after["allocated_mib"] == before["allocated_mib"]
        cases.append({"case": case, "error": error, "before": before, "after": after, "equal": equal})
        peak = {"peak_mib": torch.cuda.max_memory_allocated() / MIB} if args.device == "cuda" else {}
        cases[-1] |= peak
        print(json.dumps(cases[-1]), flush=True)
    return {"device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "cases": cases}


def trainer(args: argparse.Namespace, folder: Path, config: ScoringConfig, *extra: Callback, **options: Any) -> Trainer:
    """Make Lightning's trainer of a case."""
    return Trainer(
        accelerator="gpu" if args.device == "cuda" else "cpu", devices=1, logger=False, enable_checkpointing=False,
        precision="bf16-true" if args.device == "cuda" else "32-true", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        callbacks=[ValidationScoring(config), *extra], **options,
    )  # fmt: skip


def memory(device: str) -> dict[str, float]:
    """Return MiB of torch's tensors, and of what the driver has given away."""
    gc.collect()
    if device == "cpu":
        return {"allocated_mib": 0.0}
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return {"allocated_mib": torch.cuda.memory_allocated() / MIB, "used_mib": (total - free) / MIB}


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out")
    parser.add_argument("--size", default="tinyllama", choices=list(LLMS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
