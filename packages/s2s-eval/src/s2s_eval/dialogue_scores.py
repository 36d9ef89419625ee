"""What is known of a validated dialogue, and the metrics of all of them together."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s2s_eval.metrics import corpus_bleu, corpus_wer, empty_rate
from s2s_eval.text import normalize


class SpokenTurn(NamedTuple):
    """A turn on a timeline."""

    role: str  # "user" or "agent"
    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class TurnScore:
    """One agent turn of the reference and what the model made of it."""

    start_s: float  # of the reference turn
    end_s: float
    window_start_s: float  # of the generated audio that was transcribed
    window_end_s: float
    reference: str
    generated_text: str  # of the model's text channel in the window
    asr: str  # transcript of the generated audio
    ceiling_asr: str | None  # transcript of the codec's reconstruction of the reference; None: not scored


@dataclass(frozen=True)
class DialogueScore:
    """One validated dialogue. Plain values only: it travels between ranks."""

    dataset: str
    cut_id: str
    duration_s: float
    turns: list[SpokenTurn]  # of the reference, both roles
    generated_turns: list[SpokenTurn]  # of the model's text channel
    reference_text: str  # all agent text of the reference
    generated_text: str
    scored_turns: list[TurnScore] = field(default_factory=list)


def one_per_dialogue(per_rank: Sequence[Sequence[DialogueScore]]) -> list[DialogueScore]:
    """Return the dialogues of all ranks in one order, without those that an earlier rank has scored too.

    Ranks of one tensor-parallel group validate the same dialogues; counted twice they'd weigh double.
    """
    kept: list[DialogueScore] = []
    seen: set[tuple[str, str]] = set()
    for dialogues in per_rank:
        new = [dialogue for dialogue in dialogues if (dialogue.dataset, dialogue.cut_id) not in seen]
        kept += new
        seen |= {(dialogue.dataset, dialogue.cut_id) for dialogue in new}
    return sorted(kept, key=lambda dialogue: (dialogue.dataset, dialogue.cut_id))


def validation_metrics(dialogues: Sequence[DialogueScore], *, has_asr: bool) -> dict[str, float]:
    """Return every metric by its logged name, in per cent; one that isn't defined on the data is left out.

    ``val_asr_bleu`` and ``val_txt_bleu`` are over all data sets' texts together, the rest per data set:
    ``val_asr_bleu_<ds>``, ``val_asr_wer_<ds>``, ``val_empty_rate_<ds>`` and ``ceiling_asr_bleu_<ds>`` over turns,
    ``val_txt_bleu_<ds>`` over dialogues, and ``shuffled_asr_bleu_<ds>``, the floor: the same hypotheses against
    another dialogue's references.
    """
    metrics: dict[str, float | None] = {}
    datasets = sorted({dialogue.dataset for dialogue in dialogues})
    for suffix, members in [("", list(dialogues))] + [
        (f"_{name}", [dialogue for dialogue in dialogues if dialogue.dataset == name]) for name in datasets
    ]:
        metrics[f"val_txt_bleu{suffix}"] = text_bleu(members)
        if has_asr:
            metrics[f"val_asr_bleu{suffix}"] = asr_bleu(members)
        if has_asr and suffix:
            metrics[f"val_asr_wer{suffix}"] = asr_wer(members)
            metrics[f"val_empty_rate{suffix}"] = empty_rate([turn.asr for turn in scorable_turns(members)])
            metrics[f"ceiling_asr_bleu{suffix}"] = ceiling_bleu(members)
            metrics[f"shuffled_asr_bleu{suffix}"] = shuffled_bleu(members)
    return {name: value for name, value in metrics.items() if value is not None}


def scorable_turns(dialogues: Sequence[DialogueScore]) -> list[TurnScore]:
    """Return the scored turns whose reference has a word."""
    return [turn for dialogue in dialogues for turn in dialogue.scored_turns if normalize(turn.reference)]


def asr_bleu(dialogues: Sequence[DialogueScore]) -> float | None:
    """Return the corpus BLEU of the generated audio's transcripts, turn by turn."""
    turns = scorable_turns(dialogues)
    return corpus_bleu([turn.asr for turn in turns], [turn.reference for turn in turns])


def asr_wer(dialogues: Sequence[DialogueScore]) -> float | None:
    """Return the word error rate of the generated audio's transcripts against the reference texts."""
    turns = scorable_turns(dialogues)
    return corpus_wer([turn.asr for turn in turns], [turn.reference for turn in turns])


def ceiling_bleu(dialogues: Sequence[DialogueScore]) -> float | None:
    """Return the BLEU that perfect codes would get: codec and ASR on the reference audio."""
    pairs = [(turn.ceiling_asr, turn.reference) for turn in scorable_turns(dialogues) if turn.ceiling_asr is not None]
    return corpus_bleu([asr for asr, _ in pairs], [reference for _, reference in pairs])


def shuffled_bleu(dialogues: Sequence[DialogueScore]) -> float | None:
    """Return the BLEU against another dialogue's references: what fluent speech gets that answers nothing.

    Dialogues are put in a random order (the same each time) and each is compared with the next; a turn with the turn
    of the same number, counted round where the other dialogue is shorter. None for fewer than two dialogues.
    """
    spoken = [turns for dialogue in dialogues if (turns := scorable_turns([dialogue]))]
    if len(spoken) < 2:
        return None
    random.Random(0).shuffle(spoken)
    hypotheses, references = [], []
    for own, other in zip(spoken, [*spoken[1:], spoken[0]], strict=True):
        for i, turn in enumerate(own):
            hypotheses.append(turn.asr)
            references.append(other[i % len(other)].reference)
    return corpus_bleu(hypotheses, references)


def text_bleu(dialogues: Sequence[DialogueScore]) -> float | None:
    """Return the corpus BLEU of the model's text channel, dialogue by dialogue."""
    return corpus_bleu(
        [dialogue.generated_text for dialogue in dialogues],
        [dialogue.reference_text for dialogue in dialogues],
    )
