"""From one batch and what the model made of it to scored dialogues.

Shapes: ``B`` batch, ``S`` samples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from s2s_eval.asr import Samples
from s2s_eval.config import ScoringConfig
from s2s_eval.dialogue_scores import DialogueScore, SpokenTurn, TurnScore
from s2s_eval.quality import QualityScorer
from s2s_eval.samples import SampleAudio
from s2s_eval.speaker_similarity import SpeakerSimilarity
from s2s_eval.speech_segments import Span, speech_segments
from s2s_eval.token_metrics import dialogue_statistics
from s2s_eval.transcripts import Transcriber
from s2s_eval.turn_taking import TurnTaking, turn_taking
from s2s_eval.turn_windows import TurnLike, Window, cut_window, turn_windows


class ScoredDialogue(NamedTuple):
    """A dialogue's texts, and the audio that they come from."""

    score: DialogueScore
    audio: SampleAudio


def score_batch(
    dataset: str,
    batch: Mapping[str, Any],
    output: Mapping[str, Any],
    config: ScoringConfig,
    transcriber: Transcriber | None,
    quality: QualityScorer | None = None,
    speakers: SpeakerSimilarity | None = None,
) -> list[ScoredDialogue]:
    """Score one data set's batch. Without a transcriber (ASR scoring is off), turns get no transcripts.

    ``batch`` has ``cut_ids``, ``turns`` (:class:`s2s_eval.turn_windows.TurnLike`), ``target_texts``, ``source_audio``
    [B, S] and, if stored, ``target_audio``; ``output`` is what the model's ``validation_step`` returns for the data
    set: ``audio`` [B, S] with ``audio_lens`` [B] at ``sample_rate``, ``text``, ``text_turns``, for the ceiling
    ``ceiling_audio`` with its lens, and optionally ``statistics`` (:class:`s2s_eval.token_metrics.Statistics`, each
    with a first dim of B). ``quality`` and ``speakers`` are left out where they are None; both hear the whole
    generated channel and skip its silence.
    """
    audios = _audios(batch, output, config)
    rate = int(output["sample_rate"])
    generated = [audio.generated for audio in audios]
    agent_turns = [sorted((t for t in turns if t.role == "agent"), key=lambda t: t.start_s) for turns in batch["turns"]]
    windows = [
        turn_windows(turns, len(audio) / rate, config.early_start_s)
        for turns, audio in zip(agent_turns, generated, strict=True)
    ]
    asr: list[list[str]] = [[""] * len(spans) for spans in windows]
    ceiling_asr: list[list[str]] | None = None
    if transcriber is not None:
        asr = _transcribe(generated, windows, rate, transcriber, remember=False)
        if config.score_ceiling and "ceiling_audio" in output:
            ceiling_asr = _transcribe(_rows(output, "ceiling_audio"), windows, rate, transcriber, remember=True)
    speech = [speech_segments(audio, rate, config.silence_dbfs) for audio in generated]
    qualities, similarities = _voice_scores(audios, quality, speakers)
    scored = []
    for i, audio in enumerate(audios):
        written = [SpokenTurn("agent", *turn) for turn in output["text_turns"][i]]
        turns = [SpokenTurn(t.role, t.start_s, t.start_s + t.duration_s, t.text, t.value) for t in batch["turns"][i]]
        score = DialogueScore(
            dataset=dataset,
            cut_id=str(batch["cut_ids"][i]),
            duration_s=len(audio.user) / audio.user_sample_rate,
            turns=turns,
            generated_turns=written,
            reference_text=batch["target_texts"][i],
            generated_text=output["text"][i],
            scored_turns=[
                _turn_score(turn, window, written, asr[i][j], ceiling_asr[i][j] if ceiling_asr else None)
                for j, (turn, window) in enumerate(zip(agent_turns[i], windows[i], strict=True))
            ],
            generated_speech=speech[i],
            **_turn_taking(turns, speech[i], len(audio.generated) / rate, config)._asdict(),
            statistics=dialogue_statistics(output.get("statistics"), i),
            quality=qualities[i],
            speaker_similarity=similarities[i],
        )
        scored.append(ScoredDialogue(score, audio))
    return scored


def _turn_taking(
    turns: Sequence[SpokenTurn], speech: Sequence[Span], audio_end_s: float, config: ScoringConfig
) -> TurnTaking:
    user, agent = ([(turn.start_s, turn.end_s) for turn in turns if turn.role == role] for role in ("user", "agent"))
    return turn_taking(
        user,
        agent,
        speech,
        audio_end_s,
        early_start_s=config.early_start_s,
        barge_in_stop_s=config.barge_in_stop_s,
    )


def _voice_scores(
    audios: Sequence[SampleAudio], quality: QualityScorer | None, speakers: SpeakerSimilarity | None
) -> tuple[list[float | None], list[float | None]]:
    """Return quality and speaker similarity of each dialogue's generated speech."""
    qualities: list[float | None] = [None] * len(audios)
    similarities: list[float | None] = [None] * len(audios)
    generated = [audio.generated for audio in audios]
    if audios and quality is not None:
        qualities = quality.score(generated, audios[0].sample_rate)
    if audios and speakers is not None:
        similarities = speakers.score(
            generated=generated,
            references=[audio.reference for audio in audios],
            generated_rate=audios[0].sample_rate,
            reference_rate=audios[0].reference_sample_rate,
        )
    return qualities, similarities


def _audios(batch: Mapping[str, Any], output: Mapping[str, Any], config: ScoringConfig) -> list[SampleAudio]:
    """Return each dialogue's audio. The reference agent is the batch's own or else the codec's reconstruction."""
    rate = int(output["sample_rate"])
    users, generated = _rows(batch, "source_audio"), _rows(output, "audio")
    if "target_audio" in batch:
        references, reference_rate = _rows(batch, "target_audio"), config.target_sample_rate
    elif "ceiling_audio" in output:
        references, reference_rate = _rows(output, "ceiling_audio"), rate
    else:
        references, reference_rate = [np.zeros_like(audio) for audio in generated], rate
    return [
        SampleAudio(user, config.source_sample_rate, audio, reference, reference_rate, rate)
        for user, audio, reference in zip(users, generated, references, strict=True)
    ]


def _rows(tensors: Mapping[str, Any], key: str) -> list[Samples]:
    """Return the rows of ``tensors[key]`` [B, S] as arrays, each cut to its length in ``<key>_lens`` [B]."""
    audio_BS: Tensor = tensors[key].detach().float().cpu()
    lens = [int(length) for length in tensors[f"{key}_lens"]]
    # copied, so that a kept sample doesn't keep its whole batch
    return [row[:length].numpy().copy() for row, length in zip(audio_BS, lens, strict=True)]


def _transcribe(
    audios: Sequence[Samples],
    windows: Sequence[Sequence[Window]],
    sample_rate: int,
    transcriber: Transcriber,
    *,
    remember: bool,
) -> list[list[str]]:
    """Transcribe all windows of all dialogues in one call, so that the recogniser can batch them."""
    pieces = [
        cut_window(audio, sample_rate, window) for audio, spans in zip(audios, windows, strict=True) for window in spans
    ]
    texts = iter(transcriber.transcribe(pieces, sample_rate, remember=remember))
    return [[next(texts) for _ in spans] for spans in windows]


def _middle_s(spoken: SpokenTurn) -> float:
    """Return a moment well inside the turn: one that begins early, just ahead of its window, is still that window's.

    It isn't far inside, for a model that forgets to end its turn goes on to the dialogue's end.
    """
    return spoken.start_s + min(1.0, (spoken.end_s - spoken.start_s) / 3)


def _turn_score(
    turn: TurnLike, window: Window, generated: Sequence[SpokenTurn], asr: str, ceiling_asr: str | None
) -> TurnScore:
    written = [spoken.text for spoken in generated if window.start_s <= _middle_s(spoken) < window.end_s]
    return TurnScore(
        start_s=turn.start_s,
        end_s=turn.start_s + turn.duration_s,
        window_start_s=window.start_s,
        window_end_s=window.end_s,
        reference=turn.text,
        generated_text=" ".join(written),
        asr=asr,
        ceiling_asr=ceiling_asr,
        value=turn.value,
    )
