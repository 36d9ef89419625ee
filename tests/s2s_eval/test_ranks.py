"""One, two and three ranks of a real Lightning Trainer with DDP log the same figures, bit for bit."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from s2s_eval.config import ScoringConfig
from s2s_eval.scoring import ValidationScoring
from tests.s2s_eval.builders import RATE, WHISPER, EchoModel, SpokenDialogue, batch_of, perfect_output, spoken_dialogues

# For each world size and rank, what its batches hold. Rank 1 of 2 and of 3 has no dialogue; of 3, two ranks have "d4".
SHARES: dict[int, list[list[list[int]]]] = {
    1: [[[0, 1], [2, 3], [4]]],
    2: [[[4, 0], [1, 2, 3]], [[], []]],
    3: [[[4], [0]], [[]], [[3, 2, 1], [], [4]]],
}


def dialogue(index: int) -> SpokenDialogue:
    """Return real speech in which the agent starts later with each index."""
    spoken = spoken_dialogues()[index % 2]
    return replace(spoken, cut_id=f"d{index}", agent=np.roll(spoken.agent, round(0.137 * index * RATE)))


def statistics(dialogues: list[SpokenDialogue]) -> dict[str, torch.Tensor]:
    """Return figures whose sums depend on the order of adding them up, were they added up as they come."""
    rows = []
    for one in dialogues:
        generator = torch.Generator().manual_seed(int(one.cut_id[1:]))
        nll = 1000 * torch.rand(4, generator=generator)
        row = {"frames": torch.tensor(90), "text_hits": torch.tensor(70), "tokens": torch.tensor(30)}
        row |= {"token_hits": torch.tensor(21), "text_nll": nll[0], "token_nll": nll[1]}
        rows.append(row | {"code_nll": nll[2:], "code_hits": torch.tensor([40, 20])})
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class RankModel(EchoModel):
    """Validates on each rank that rank's dialogues."""

    def __init__(self, world_size: int) -> None:
        super().__init__([])
        self.world_size = world_size

    def val_dataloader(self) -> DataLoader[Any]:
        share = SHARES[self.world_size][self.trainer.global_rank]
        self.rounds = [{"even": pick(batch, 0), "odd": pick(batch, 1)} for batch in share]
        batches = [{name: batch_of(members) for name, members in one.items()} for one in self.rounds]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        return {
            name: perfect_output(members) | {"statistics": statistics(members)} if members else None
            for name, members in self.rounds[batch_idx].items()
        }


def pick(indices: list[int], remainder: int) -> list[SpokenDialogue]:
    return [dialogue(index) for index in indices if index % 2 == remainder]


class Keep(pl.Callback):
    """Writes what each rank has logged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        (self.folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(logged))


def validate(world_size: int, folder: Path) -> tuple[dict[str, float], list[str], list[dict[str, float]]]:
    """Return the metrics in full precision, the dialogues' lines and what each rank logged."""
    folder.mkdir()
    config = ScoringConfig(WHISPER, score_ceiling=False, max_samples_per_dataset=0, target_sample_rate=RATE)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy=DDPStrategy(process_group_backend="gloo", start_method="fork"),
        callbacks=[ValidationScoring(replace(config, write_report=False), folder), Keep(folder)],
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.validate(RankModel(world_size), verbose=False)
    samples = folder / "samples" / "step_0"
    lines = [line for name in ("even", "odd") for line in (samples / name / "dialogues.jsonl").read_text().splitlines()]
    logged = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(world_size)]
    return json.loads((samples / "scores.json").read_text())["metrics"], lines, logged


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], list[str], list[dict[str, float]]]:
    return validate(1, tmp_path_factory.mktemp("one") / "run")


def test_every_kind_of_metric_is_there(one_rank) -> None:
    metrics, lines, _ = one_rank
    assert [json.loads(line)["cut_id"] for line in lines] == ["d0", "d2", "d4", "d1", "d3"]
    expected = ["asr_bleu", "asr_cer", "said_wer", "txt_bleu", "latency_s_median", "talk_over", "code_perplexity"]
    expected += ["answer_accuracy", "answer_accuracy_text"]
    assert {f"val_{name}{suffix}" for name in expected for suffix in ("", "_even", "_odd")} <= set(metrics)
    assert metrics["val_asr_bleu"] > 50
    assert 0 < metrics["val_answer_accuracy"] < metrics["val_answer_accuracy_text"] == 100


@pytest.mark.parametrize("world_size", [2, 3])
def test_more_ranks_get_the_figures_of_one(world_size: int, one_rank, tmp_path: Path) -> None:
    metrics, lines, [logged_by_one] = one_rank
    many_metrics, many_lines, logged = validate(world_size, tmp_path / "run")
    assert many_metrics == metrics
    assert many_lines == lines  # a dialogue that two ranks validated counts once
    assert logged == [logged_by_one] * world_size
