"""Throughput, memory and the cost of checkpoints of a peer-sized model on 1 to 8 GPUs of a machine.

    python -m benchmarks.gpu_parallel 1x1:plain:16x20
    torchrun --nproc-per-node 2 -m benchmarks.gpu_parallel 2x1:plain:16x20 1x2:plain:16x20 1x1x1x2:plain:1x300
    torchrun --nproc-per-node 8 -m benchmarks.gpu_parallel 8x1:plain:8x20 4x2:recompute:8x20 8x1x2:plain:8x20 --size 8b

A case is MESH:VARIANT:DIALOGUESxSECONDS, a mesh DATAxTENSOR, DATAxTENSORxCOPIES or DATAxTENSORxCOPIESxCONTEXT.
Dialogues come with stored codes, random like the weights, as many for each data parallel process on any mesh, so that
throughputs compare. Without a GPU, `--size tiny --device cpu` runs all of it on gloo in a minute. The exit code is the
number of cases that failed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from s2s_parallel.config import ParallelConfig
from s2s_parallel.mesh import MeshSizes
from s2s_parallel.strategy import MeshStrategy
from tests.s2s_model.builders import codec_config, make_llm
from tests.s2s_model.builders import conformer as small_conformer

FRAME_S = 0.08
CODES, CODEBOOKS = 4032, 8  # NanoCodec's
LLAMA: dict[str, Any] = {
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
LLMS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 640},
    "tinyllama": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
                  "num_key_value_heads": 4, "vocab_size": 32000},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


def main() -> int:
    """Run all cases; rank 0 writes what they showed after each. Return how many failed."""
    args = parse()
    torch.set_float32_matmul_precision("medium")
    rank = int(os.environ.get("RANK", "0"))
    folder = Path(tempfile.gettempdir()) / f"gpu_parallel.{os.environ.get('MASTER_PORT', '0')}"  # all processes'
    config = model_config(folder, args)
    ready = folder / "ready"
    if rank == 0:
        write_parts(folder, args)  # NeMo writes on the first process alone
        ready.touch()
    while not ready.exists():
        time.sleep(0.1)
    shown: list[dict[str, Any]] = []
    for case in args.cases:
        shown.append(run_case(args, config, case, folder / "last.ckpt"))
        if rank == 0:
            print(json.dumps(shown[-1]), flush=True)
            Path(args.out).write_text(json.dumps(shown, indent=1))
    if rank == 0:
        shutil.rmtree(folder)
    return sum("error" in each for each in shown)


def parse() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", type=Case.parse, default=[Case.parse("1x1:plain:16x20")])
    parser.add_argument("--out", default="parallel.json")
    parser.add_argument("--size", default="tinyllama", choices=list(LLMS))
    parser.add_argument("--steps", type=int, default=12, help="of a case; ten times as many of one that saves")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument(
        "--backend", default=None, help="of the process group, e.g. gloo for several processes on a GPU"
    )
    return parser.parse_args()


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "kept": {"reshard_after_forward": False},
    "saving": {},  # with an asynchronous checkpoint in the middle
    "saving_at_once": {"async_checkpoint": False},
    "no_sequence_parallel": {"sequence_parallel": False},
    "recompute": {"activation_checkpointing": "full"},
    "selective": {"activation_checkpointing": "selective"},
    "compile": {"compile": True},
    "master_weights": {"param_dtype": "bfloat16"},  # float32 weights, computing in bf16
    "offload": {"cpu_offload": True, "param_dtype": "bfloat16"},
}


@dataclass(frozen=True)
class Case:
    """What is run: a mesh's sizes, how the model is laid out on it, and the batch of a data parallel process."""

    text: str
    sizes: MeshSizes
    variant: str
    num_dialogues: int
    num_frames: int  # of each, 80 ms

    @classmethod
    def parse(cls, text: str) -> Case:
        """Read MESH:VARIANT:DIALOGUESxSECONDS."""
        try:
            mesh, variant, batch = text.split(":")
            VARIANTS[variant]
            num_dialogues, seconds = batch.split("x")
            sizes = MeshSizes(*(int(size) for size in mesh.split("x")))
            return cls(text, sizes, variant, int(num_dialogues), round(float(seconds) / FRAME_S))
        except (KeyError, TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(
                f"{text!r}: give MESH:VARIANT:DIALOGUESxSECONDS, such as 2x1:plain:16x20, with a variant of"
                f" {', '.join(VARIANTS)} ({error})"
            ) from error


def run_case(args: argparse.Namespace, config: dict[str, Any], case: Case, checkpoint: Path) -> dict[str, Any]:
    """Train some steps; return milliseconds a step, throughput and memory, or the error."""
    began = time.perf_counter()
    try:
        shown = train(args, config, case, checkpoint)
    except Exception as error:  # the other cases are still worth their time
        shown = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    torch.set_default_dtype(torch.float32)
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()
    return {"case": case.text, **shown, "case_s": round(time.perf_counter() - began, 1)}


def train(args: argparse.Namespace, config: dict[str, Any], case: Case, checkpoint: Path) -> dict[str, Any]:
    """As `run_case`, leaving its model to be freed."""
    from s2s_model import DuplexS2SModel

    sizes, options = case.sizes, dict(VARIANTS[case.variant])
    in_background: bool = options.pop("async_checkpoint", True)
    saves = case.variant.startswith("saving")
    steps = args.steps * (10 if saves else 1)
    clock = Clock(checkpoint if saves else None, steps)
    cuda = args.device == "cuda"
    dtype = torch.float32 if not cuda or "param_dtype" in options else torch.bfloat16
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device("cpu" if options.get("cpu_offload") else args.device):
        model = DuplexS2SModel(config, parallel=ParallelConfig(**options)).to(dtype)
    torch.set_default_dtype(torch.float32)
    strategy = MeshStrategy(
        sizes.data_parallel_size, sizes.tensor_parallel_size, sizes.replicate_size,
        context_parallel_size=sizes.context_parallel_size, process_group_backend=args.backend,
        async_checkpoint=in_background,
    )  # fmt: skip
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu", devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        strategy=strategy, precision="bf16-true" if dtype == torch.bfloat16 else "32-true", max_steps=steps,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[clock], use_distributed_sampler=False, gradient_clip_val=1.0, inference_mode=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Batches(batch(case.num_dialogues, case.num_frames, model)), batch_size=None))
    summary = clock.summary()
    audio_s = case.num_dialogues * case.num_frames * FRAME_S * sizes.data_parallel_size
    return {**summary, "audio_s_per_s": round(audio_s / summary["median_ms"] * 1000, 1), "losses": clock.losses[:12]}


class Clock(Callback):
    """Times steps behind the third, the device synchronised; may save after that and in the middle."""

    def __init__(self, save_to: Path | None, num_steps: int) -> None:
        self._save_to = save_to
        self._middle = num_steps // 2
        self._began = 0.0
        self._times_ms: list[float] = []
        self.losses: list[float] = []
        self._stalls_ms: list[float] = []
        self._write_s = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock."""
        synchronize()
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock; save after that."""
        synchronize()
        self._times_ms.append((time.perf_counter() - self._began) * 1000)
        self.losses.append(round(float(trainer.callback_metrics["train_loss"]), 4))
        if batch_idx == 2 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if self._save_to is not None and batch_idx in (2, self._middle):
            began = time.perf_counter()
            trainer.save_checkpoint(self._save_to)
            synchronize()
            self._stalls_ms.append((time.perf_counter() - began) * 1000)
            if batch_idx == 2:  # the first makes the memory that later ones copy to
                self._wait_for_save(trainer)

    def _wait_for_save(self, trainer: Trainer) -> None:
        began = time.perf_counter()
        strategy = trainer.strategy
        assert isinstance(strategy, MeshStrategy)
        strategy.wait_for_save()
        self._write_s = time.perf_counter() - began

    def summary(self) -> dict[str, Any]:
        """What the steps took. While a checkpoint is written in the background, steps may take longer."""
        steady = self._times_ms[3 : self._middle + 1]
        after = self._times_ms[self._middle + 1 :]
        summary = {"median_ms": round(statistics.median(steady + ([] if self._save_to else after)), 2)}
        if self._save_to is not None:
            summary["first_stall_ms"], summary["stall_ms"] = (round(stall, 1) for stall in self._stalls_ms)
            summary["write_s"] = round(self._write_s, 2)
            summary["slower_steps_ms"] = round(sum(after) - len(after) * summary["median_ms"], 1)
        if torch.cuda.is_available():
            summary["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return summary


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Batches(IterableDataset[Any]):
    """The same batch without end."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield dict(self._batch)


def batch(num_dialogues: int, num_frames: int, model: Any) -> dict[str, Any]:
    """Dialogues of noise, the agent silent."""
    B, T = num_dialogues, num_frames
    generator = torch.Generator().manual_seed(0)
    tokens_BT = torch.full((B, T), model.tokenizer.pad_id)
    lens_B = torch.full((B,), T)
    return {
        "source_audio": torch.randn(B, T * 1280, generator=generator) * 0.1,
        "source_audio_lens": lens_B * 1280,
        "target_codes": torch.randint(CODES, (B, T, CODEBOOKS), generator=generator),
        "target_code_lens": lens_B,
        "target_tokens": tokens_BT,
        "target_token_lens": lens_B,
        "source_tokens": tokens_BT,
        "source_token_lens": lens_B,
        "target_texts": [""] * B,
        "source_texts": [""] * B,
        "cut_ids": [str(b) for b in range(B)],
    }


def write_parts(folder: Path, args: argparse.Namespace) -> None:
    """Write the LLM's config, a tokenizer and a codec of NanoCodec's rates to `folder`."""
    from nemo.collections.tts.models import AudioCodecModel
    from transformers import LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    make_llm(folder / "llm")
    traits: dict[str, Any] = {**LLMS[args.size], **LLAMA, "architectures": ["LlamaForCausalLM"], "pad_token_id": 3}
    LlamaConfig(**traits).save_pretrained(folder / "llm")
    codec = codec_config(num_codebooks=CODEBOOKS)
    codec.vector_quantizer.num_levels_per_group = [8, 8, 9, 7]
    codec.audio_encoder.encoded_dim = codec.audio_decoder.input_dim = 4 * CODEBOOKS
    AudioCodecModel(codec).save_to(str(folder / "codec.nemo"))


def model_config(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The `model` section of what `write_parts` writes."""
    tiny = args.size == "tiny"
    encoder = conformer(80, 64 if tiny else 512, 2 if tiny else 17, 8)
    return {
        "pretrained_llm": str(folder / "llm"),
        "pretrained_audio_codec": str(folder / "codec.nemo"),
        "pretrained_weights": False,
        "perception": {
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "features": 80,
                "normalize": "NA",
                "dither": 0.0,
                "pad_to": 0,
            },
            "encoder": encoder,
            "modality_adapter": conformer(encoder["d_model"], encoder["d_model"], 2, 1),
        },
        "optimizer": {"_target_": "s2s_model.adamw.AdamW", "lr": 1e-4},
    }


def conformer(feat_in: int, width: int, num_layers: int, subsampling_factor: int) -> dict[str, Any]:
    """A causal FastConformer of the published large shape, or of another width."""
    return small_conformer(feat_in, subsampling_factor) | {
        "n_layers": num_layers,
        "d_model": width,
        "subsampling_conv_channels": min(width, 256),
        "n_heads": 8,
        "att_context_size": [70, 0],
        "conv_kernel_size": 9,
    }


if __name__ == "__main__":
    sys.exit(main())
