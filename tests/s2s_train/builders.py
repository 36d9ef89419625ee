"""A tiny corpus and a tiny model that go through the app's own functions, and readers of what a run leaves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule

from s2s_data import DuplexBatch
from s2s_train.config import AppConfig, load_config
from s2s_train.fit import fit
from s2s_train.run_folder import RunFolder
from tests.s2s_data.builders import WordTokenizer, dialogues, write_shar

NUM_CUTS = 12
CLOCK = {"time_s", "audio_s_per_s", "data_wait_share"}  # metrics that differ from run to run


class TinyModel(LightningModule):
    """One weight, fitted to the mean of the audio; writes down which dialogues each step had."""

    def __init__(self, cfg: AppConfig, width: int = 1) -> None:
        super().__init__()
        self.tokenizer = WordTokenizer()
        self.codec_fingerprint = None
        self.linear = torch.nn.Linear(1, width)
        self.dropout = torch.nn.Dropout(0.5)
        self.seen_path = RunFolder.of(cfg).path / "seen.jsonl"

    def training_step(self, batch: DuplexBatch, batch_idx: int) -> torch.Tensor:
        step = self.global_step
        with self.seen_path.open("a") as file:
            file.write(json.dumps([step, batch["cut_ids"]]) + "\n")
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, batch_size=1)
        return loss

    def validation_step(self, batch: dict[str, DuplexBatch | None], batch_idx: int) -> None:
        for name, part in batch.items():
            if part is not None:
                loss = self._loss(part)
                self.log(f"val_loss_{name}", loss, batch_size=len(part["cut_ids"]))
                self.log("val_loss", loss, batch_size=len(part["cut_ids"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _loss(self, batch: DuplexBatch) -> torch.Tensor:
        mean_B1 = batch["source_audio"].abs().mean(1, keepdim=True)
        loss: torch.Tensor = (self.linear(self.dropout(mean_B1)) - 1).square().mean()
        return loss


def write_config(folder: Path, corpus: str, **sections: dict[str, Any]) -> Path:
    config: dict[str, dict[str, Any]] = {
        "model": {"pretrained_llm": "none", "pretrained_audio_codec": "none"},
        "data": {
            "train_ds": {"shar_path": corpus, "batch_size": 2, "seed": 3, "shuffle_buffer_size": 6},
            "validation_ds": {"batch_size": 5, "datasets": {"a": {"shar_path": corpus}}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 6,
            "limit_train_batches": 4,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
        },
        "exp_manager": {"exp_dir": str(folder / "runs")},
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def make_corpus(folder: Path) -> str:
    return write_shar(folder / "corpus", dialogues("cut", NUM_CUTS))


def run(path: Path, name: str, *overrides: str, callbacks: Sequence[Callback] = (), width: int = 1) -> RunFolder:
    """One call of `fit`, as the command line makes it, with the tiny model."""
    cfg = load_config(path, [f"name={name}", *overrides])
    return fit(cfg, lambda cfg: TinyModel(cfg, width), lambda cfg, folder: list(callbacks))


def metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def seen(folder: RunFolder) -> dict[int, list[str]]:
    """The dialogues of each step, of its last run where a step was run twice."""
    lines = [json.loads(line) for line in (folder.path / "seen.jsonl").read_text().splitlines()]
    return dict(lines)
