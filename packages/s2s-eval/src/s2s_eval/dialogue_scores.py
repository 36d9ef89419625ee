"""What is known of a validated dialogue, and the metrics of all of them together."""

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from s2s_eval.metrics import answer_accuracy, corpus_bleu, corpus_cer, corpus_wer, empty_rate
from s2s_eval.speech_segments import Span
from s2s_eval.text import normalize
from s2s_eval.token_metrics import Statistics, token_metrics
from s2s_eval.turn_taking import BargeIn, Response, TurnTaking
from s2s_eval.turn_taking_metrics import turn_taking_metrics

log = logging.getLogger(__name__)


class SpokenTurn(NamedTuple):
    """A turn on a timeline."""

    role: str  # "user" or "agent"
    start_s: float
    end_s: float
    text: str
    value: str | None = None  # what the agent's answer must contain; None: not known


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
    value: str | None = None  # what the answer must contain; None: not known


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
    generated_speech: list[Span] = field(default_factory=list)  # where the generated agent is audible
    responses: list[Response] = field(default_factory=list)  # one a user turn that asks for an answer
    barge_ins: list[BargeIn] = field(default_factory=list)
    user_speech_s: float = 0.0
    talk_over_s: float = 0.0  # of the user's speech
    statistics: Statistics | None = None  # None: the model gives none
    quality: float | None = None  # of the generated speech; None: not scored, or silent
    speaker_similarity: float | None = None  # of generated and reference speech


def one_per_dialogue(per_rank: Sequence[Sequence[DialogueScore]]) -> list[DialogueScore]:
    """Return the dialogues of all ranks in one order, each once; of one scored twice, the first rank's counts.

    Ranks of one tensor-parallel group validate the same dialogues, and samplers repeat some to make shares even. A
    dialogue is known by data set and cut id, on one rank as on many. Ids that several dialogues have are warned of.
    """
    kept: dict[tuple[str, str], DialogueScore] = {}
    shared: set[str] = set()
    for dialogues in per_rank:
        for dialogue in dialogues:
            first = kept.setdefault((dialogue.dataset, dialogue.cut_id), dialogue)
            if first.turns != dialogue.turns:
                shared.add(f"{dialogue.dataset}/{dialogue.cut_id}")
    if shared:
        log.warning(
            "%d ids are those of several dialogues, such as %s: only one of each is scored. Give each its own id",
            len(shared), min(shared),
        )  # fmt: skip
    return [kept[key] for key in sorted(kept)]


def validation_metrics(dialogues: Sequence[DialogueScore], *, has_asr: bool, language: str = "en") -> dict[str, float]:
    """Return every metric by its logged name; one that has no occasion in the data is left out.

    Each is over all dialogues together (``val_asr_bleu``) and over those of each data set (``val_asr_bleu_<ds>``).
    Rates, BLEU and accuracies are in per cent, times in seconds. Of texts:

    - ``val_asr_bleu``, ``val_asr_wer``, ``val_asr_cer``, ``val_empty_rate``: what a recogniser hears of the generated
      speech against what should have been said, over turns.
    - ``val_said_wer``, ``val_said_cer``: the same against what the model writes there: does it say what it writes?
    - ``val_txt_bleu``: what the model writes, over dialogues.
    - ``val_answer_accuracy``, ``val_answer_accuracy_text``: of the turns with a value, those in which it is heard, and
      those in which it is written.
    - ``ceiling_asr_bleu_<ds>``, ``ceiling_answer_accuracy_<ds>``, ``shuffled_asr_bleu_<ds>``: what perfect codes would
      get, and what another dialogue's answers get; of data sets only.

    The rest is in :func:`~s2s_eval.turn_taking_metrics.turn_taking_metrics`, :func:`~s2s_eval.token_metrics
    .token_metrics` and :func:`voice_metrics`. Raises ValueError for an unknown ``language``, and for a data set whose
    name makes one name of two metrics.
    """
    metrics = _metrics(dialogues, "", has_asr, language)
    for name in sorted({dialogue.dataset for dialogue in dialogues}):
        members = [dialogue for dialogue in dialogues if dialogue.dataset == name]
        found = _metrics(members, f"_{name}", has_asr, language)
        if both := sorted(found.keys() & metrics.keys()):
            raise ValueError(f"{both[0]} of the data set {name!r} is another metric's name too: rename the data set")
        metrics |= found
    return metrics


def _metrics(dialogues: Sequence[DialogueScore], suffix: str, has_asr: bool, language: str) -> dict[str, float]:
    texts: dict[str, float | None] = {
        f"val_txt_bleu{suffix}": text_bleu(dialogues, language),
        f"val_answer_accuracy_text{suffix}": written_accuracy(dialogues, language),
    }
    if has_asr:
        heard = [turn.asr for turn in scorable_turns(dialogues, language)]
        texts[f"val_asr_bleu{suffix}"] = asr_bleu(dialogues, language)
        texts[f"val_asr_wer{suffix}"] = asr_wer(dialogues, language)
        texts[f"val_asr_cer{suffix}"] = asr_cer(dialogues, language)
        texts[f"val_empty_rate{suffix}"] = empty_rate(heard, language)
        texts[f"val_answer_accuracy{suffix}"] = spoken_accuracy(dialogues, language)
        texts[f"val_said_wer{suffix}"], texts[f"val_said_cer{suffix}"] = said_errors(dialogues, language)
    if has_asr and suffix:
        texts[f"ceiling_asr_bleu{suffix}"] = ceiling_bleu(dialogues, language)
        texts[f"ceiling_answer_accuracy{suffix}"] = ceiling_accuracy(dialogues, language)
        texts[f"shuffled_asr_bleu{suffix}"] = shuffled_bleu(dialogues, language)
    turns = [TurnTaking(d.responses, d.barge_ins, d.user_speech_s, d.talk_over_s) for d in dialogues]
    statistics = [d.statistics for d in dialogues if d.statistics is not None]
    return (
        {name: value for name, value in texts.items() if value is not None}
        | turn_taking_metrics(turns, suffix)
        | token_metrics(statistics, suffix, each_codebook=bool(suffix))
        | voice_metrics(dialogues, suffix)
    )


def voice_metrics(dialogues: Sequence[DialogueScore], suffix: str = "") -> dict[str, float]:
    """Return ``val_quality`` and ``val_speaker_similarity``, the means over the dialogues that have one."""
    scores = {
        "val_quality": [d.quality for d in dialogues if d.quality is not None],
        "val_speaker_similarity": [d.speaker_similarity for d in dialogues if d.speaker_similarity is not None],
    }
    return {name + suffix: math.fsum(values) / len(values) for name, values in scores.items() if values}


def own_scores(dialogue: DialogueScore, language: str = "en") -> dict[str, float | None]:
    """Return what is counted of one dialogue, by the names that its record and tables have; None: there is nothing."""
    return {
        "asr_wer": asr_wer([dialogue], language),
        "asr_bleu": asr_bleu([dialogue], language),
        "answer_accuracy": spoken_accuracy([dialogue], language),
        "answer_accuracy_text": written_accuracy([dialogue], language),
        "latency_s": mean_latency_s(dialogue),
    }


def mean_latency_s(dialogue: DialogueScore) -> float | None:
    """Return the mean latency in seconds of the dialogue's answers, or None if there is none."""
    latencies = [response.latency_s for response in dialogue.responses if response.latency_s is not None]
    return math.fsum(latencies) / len(latencies) if latencies else None


def scorable_turns(dialogues: Sequence[DialogueScore], language: str = "en") -> list[TurnScore]:
    """Return the scored turns whose reference has a word."""
    return [turn for dialogue in dialogues for turn in dialogue.scored_turns if normalize(turn.reference, language)]


def asr_bleu(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the corpus BLEU of the generated audio's transcripts, turn by turn."""
    turns = scorable_turns(dialogues, language)
    return corpus_bleu([turn.asr for turn in turns], [turn.reference for turn in turns], language)


def asr_wer(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the word error rate of the generated audio's transcripts against the reference texts."""
    turns = scorable_turns(dialogues, language)
    return corpus_wer([turn.asr for turn in turns], [turn.reference for turn in turns], language)


def asr_cer(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the character error rate of the generated audio's transcripts against the reference texts."""
    turns = scorable_turns(dialogues, language)
    return corpus_cer([turn.asr for turn in turns], [turn.reference for turn in turns], language)


def said_errors(dialogues: Sequence[DialogueScore], language: str = "en") -> tuple[float | None, float | None]:
    """Return word and character error rate of what is heard against what the model writes, turn by turn.

    The reference text has no say. Speech in a turn in which nothing is written counts as insertions.
    """
    turns = _all_turns(dialogues)
    heard, written = [turn.asr for turn in turns], [turn.generated_text for turn in turns]
    return corpus_wer(heard, written, language), corpus_cer(heard, written, language)


def ceiling_bleu(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the BLEU that perfect codes would get: codec and ASR on the reference audio."""
    turns = scorable_turns(dialogues, language)
    pairs = [(turn.ceiling_asr, turn.reference) for turn in turns if turn.ceiling_asr is not None]
    return corpus_bleu([asr for asr, _ in pairs], [reference for _, reference in pairs], language)


def spoken_accuracy(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the share in per cent of the turns with a value in whose transcript it is, or None without any."""
    turns = _all_turns(dialogues)
    return answer_accuracy([turn.asr for turn in turns], [turn.value for turn in turns], language)


def written_accuracy(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the share in per cent of the turns with a value in which the model writes it, or None without any."""
    turns = _all_turns(dialogues)
    return answer_accuracy([turn.generated_text for turn in turns], [turn.value for turn in turns], language)


def ceiling_accuracy(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the accuracy that perfect codes would get: codec and ASR on the reference audio."""
    heard = [(turn.ceiling_asr, turn.value) for turn in _all_turns(dialogues) if turn.ceiling_asr is not None]
    return answer_accuracy([asr for asr, _ in heard], [value for _, value in heard], language)


def _all_turns(dialogues: Sequence[DialogueScore]) -> list[TurnScore]:
    return [turn for dialogue in dialogues for turn in dialogue.scored_turns]


def shuffled_bleu(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the BLEU against another dialogue's references: what fluent speech gets that answers nothing.

    Dialogues are put in a random order (the same each time) and each is compared with the next; a turn with the turn
    of the same number, counted round where the other dialogue is shorter. None for fewer than two dialogues.
    """
    spoken = [turns for dialogue in dialogues if (turns := scorable_turns([dialogue], language))]
    if len(spoken) < 2:
        return None
    random.Random(0).shuffle(spoken)
    hypotheses, references = [], []
    for own, other in zip(spoken, [*spoken[1:], spoken[0]], strict=True):
        for i, turn in enumerate(own):
            hypotheses.append(turn.asr)
            references.append(other[i % len(other)].reference)
    return corpus_bleu(hypotheses, references, language)


def text_bleu(dialogues: Sequence[DialogueScore], language: str = "en") -> float | None:
    """Return the corpus BLEU of the model's text channel, dialogue by dialogue."""
    return corpus_bleu(
        [dialogue.generated_text for dialogue in dialogues],
        [dialogue.reference_text for dialogue in dialogues],
        language,
    )
