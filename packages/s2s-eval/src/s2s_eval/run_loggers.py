"""Dialogues to read and to listen to in Weights & Biases and TensorBoard, where a run logs there.

Shapes: ``S`` samples.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from s2s_eval.dialogue_scores import DialogueScore, own_scores
from s2s_eval.samples import wav_paths

log = logging.getLogger(__name__)

TABLE = "dialogues"
# the scores of a dialogue; one that there is none of is null
SCORES = (
    *("asr_wer", "asr_bleu", "answer_accuracy", "answer_accuracy_text"),
    *("latency_s", "quality", "speaker_similarity"),
)
COLUMNS = [
    *("dataset", "cut_id", "reference_text", "generated_text", "asr"),
    *SCORES,
    "user_left_generated_right",
    "reference",
]


def log_dialogues(
    loggers: Sequence[Logger],
    step: int,
    dialogues: Sequence[DialogueScore],
    folder: Path,
    max_per_dataset: int = 8,
    language: str = "en",
) -> None:
    """Log the dialogues whose wavs lie in ``folder``, a validation's, at most ``max_per_dataset`` of a data set.

    Lightning's WandbLogger gets a table ``dialogues``, its TensorBoardLogger texts and audio (mono: it has no other)
    under ``dialogues/<data set>/<cut id>``; other loggers are left alone. Call it on one rank, once all ranks have
    written their wavs. What goes wrong is logged: it never ends the training.
    """
    heard: list[DialogueScore] | None = None
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            write: Any = _log_to_wandb
        elif isinstance(logger, TensorBoardLogger):
            write = _log_to_tensorboard
        else:
            continue
        try:
            heard = _heard(dialogues, folder, max_per_dataset) if heard is None else heard
            if heard:
                write(logger, step, heard, folder, language)
        except Exception as error:  # a full disk, a service out of reach, a broken wav: each raises its own
            log.warning(
                "dialogues of step %d weren't given to %s: %s. Training goes on.", step, type(logger).__name__, error
            )


def _heard(dialogues: Sequence[DialogueScore], folder: Path, max_per_dataset: int) -> list[DialogueScore]:
    """Return the dialogues whose audio was kept, the first few of each data set."""
    counts: Counter[str] = Counter()
    heard = []
    for dialogue in dialogues:
        wavs = wav_paths(folder, dialogue.dataset, dialogue.cut_id)
        if counts[dialogue.dataset] < max_per_dataset and wavs.stereo.exists() and wavs.reference.exists():
            counts[dialogue.dataset] += 1
            heard.append(dialogue)
    return heard


def _log_to_wandb(
    logger: WandbLogger, step: int, dialogues: Sequence[DialogueScore], folder: Path, language: str
) -> None:
    import wandb

    rows = []
    for dialogue in dialogues:
        wavs = wav_paths(folder, dialogue.dataset, dialogue.cut_id)
        texts = [dialogue.dataset, dialogue.cut_id, dialogue.reference_text, dialogue.generated_text, _asr(dialogue)]
        audio = [wandb.Audio(str(path)) for path in wavs]
        rows.append([*texts, *_scores(dialogue, language).values(), *audio])
    logger.log_table(TABLE, columns=COLUMNS, data=rows, step=step)


def _log_to_tensorboard(
    logger: TensorBoardLogger, step: int, dialogues: Sequence[DialogueScore], folder: Path, language: str
) -> None:
    writer = logger.experiment
    for dialogue in dialogues:
        tag = f"{TABLE}/{dialogue.dataset}/{dialogue.cut_id}"
        writer.add_text(tag, _markdown(dialogue, language), step)
        wavs = wav_paths(folder, dialogue.dataset, dialogue.cut_id)
        stereo_S2, rate = soundfile.read(wavs.stereo, dtype="float32", always_2d=True)
        reference_S, reference_rate = soundfile.read(wavs.reference, dtype="float32")
        writer.add_audio(f"{tag}/user_and_generated", _sum(stereo_S2), step, rate)
        writer.add_audio(f"{tag}/generated", stereo_S2[:, 1], step, rate)
        writer.add_audio(f"{tag}/reference", reference_S, step, reference_rate)
    writer.flush()


def _sum(stereo_S2: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
    return np.clip(stereo_S2.sum(axis=1), -1, 1)


def _asr(dialogue: DialogueScore) -> str:
    return " ".join(turn.asr for turn in dialogue.scored_turns if turn.asr)


def _scores(dialogue: DialogueScore, language: str) -> dict[str, float | None]:
    scores = own_scores(dialogue, language)
    scores |= {"quality": dialogue.quality, "speaker_similarity": dialogue.speaker_similarity}
    return {name: scores[name] for name in SCORES}


def _markdown(dialogue: DialogueScore, language: str) -> str:
    """Return texts and scores; indented text is shown as it is, whatever characters it has."""
    scores = ", ".join(
        f"{name} {value:.2f}" for name, value in _scores(dialogue, language).items() if value is not None
    )
    parts = {
        "Reference": dialogue.reference_text,
        "Generated": dialogue.generated_text,
        "Heard": _asr(dialogue),
        "Scores": scores,
    }
    blocks = (f"**{title}**\n\n    " + (text or "–").replace("\n", "\n    ") for title, text in parts.items())
    return "\n\n".join(blocks)
