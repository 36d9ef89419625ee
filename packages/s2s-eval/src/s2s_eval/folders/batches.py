"""Paired dialogues as the batches that scoring takes: of like length, and of a bounded one.

Shapes: ``B`` batch, ``S`` samples.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s2s_eval.asr import Samples
from s2s_eval.folders.audio import Track
from s2s_eval.folders.hypotheses import Hypothesis
from s2s_eval.folders.pairs import Pair
from s2s_eval.folders.texts import Turn
from s2s_eval.transcripts import Transcriber

MAX_BATCH_S = 600.0  # of padded audio a channel: what memory is needed for, whatever the number of files


class Kind(NamedTuple):
    """What the dialogues of one batch have in common. Rates are in Hz; 0: there is no such audio."""

    sample_rate: int
    user_sample_rate: int
    reference_sample_rate: int
    is_heard: bool  # the reference's text is what a recogniser hears in its speech


class Batch(NamedTuple):
    """A batch and a model's output, as :func:`s2s_eval.batch_scoring.score_batch` takes them."""

    batch: dict[str, Any]
    output: dict[str, Any]


def batches(pairs: Sequence[Pair]) -> Iterator[tuple[Kind, list[Pair]]]:
    """Yield the dialogues in groups of one kind, the shortest first, each of :data:`MAX_BATCH_S` or one dialogue."""
    ordered = sorted(pairs, key=lambda pair: (_kind(pair), _duration_s(pair), pair.name))
    for kind, members in groupby(ordered, key=_kind):
        group: list[Pair] = []
        for pair in members:
            if group and (len(group) + 1) * _duration_s(pair) > MAX_BATCH_S:
                yield kind, group
                group = []
            group.append(pair)
        yield kind, group


def read_batch(kind: Kind, pairs: Sequence[Pair], transcriber: Transcriber | None, *, has_ceiling: bool) -> Batch:
    """Read the audio of dialogues of one kind. With ``has_ceiling`` the reference speech is there to be heard, too.

    Raises ValueError for audio that can't be read, and for references that are speech alone if nothing transcribes it.
    """
    agents = [pair.hypothesis.agent.read() for pair in pairs]
    references = [pair.reference.agent.read() for pair in pairs if pair.reference.agent]
    at_rate = [soxr.resample(audio, kind.reference_sample_rate, kind.sample_rate) for audio in references]
    if references:
        agents = [_as_long(pair, *audios) for pair, *audios in zip(pairs, agents, at_rate, strict=True)]
    texts = [pair.reference.text or "" for pair in pairs]
    if kind.is_heard:
        texts = _heard(pairs, references, kind.reference_sample_rate, transcriber)
    turns = [
        pair.reference.turns or [Turn("agent", 0.0, len(agent) / kind.sample_rate, text)]
        for pair, agent, text in zip(pairs, agents, texts, strict=True)
    ]
    batch = {
        "cut_ids": [pair.name for pair in pairs],
        "turns": turns,
        "target_texts": texts,
        **_rows("source_audio", [_read_user(pair, agent) for pair, agent in zip(pairs, agents, strict=True)]),
        **_rows("target_audio", references),
    }
    output = {
        "text": [" ".join((pair.hypothesis.text or "").split()) for pair in pairs],
        "text_turns": [_spans(written_turns(pair.hypothesis, own)) for pair, own in zip(pairs, turns, strict=True)],
        "sample_rate": kind.sample_rate,
        **_rows("audio", agents),
        **_rows("ceiling_audio", at_rate if has_ceiling and not kind.is_heard else []),
    }
    return Batch(batch, output)


def written_turns(hypothesis: Hypothesis, reference: Sequence[Turn]) -> list[Turn] | None:
    """Return what the model wrote turn by turn, or None where that isn't known.

    A text without times is one turn's where the reference has one, or else has a line for each of its turns.
    """
    if hypothesis.turns is not None or hypothesis.text is None:
        return hypothesis.turns
    agent = [turn for turn in reference if turn.role == "agent"]
    lines = [hypothesis.text] if len(agent) == 1 else hypothesis.text.splitlines()
    if len(lines) != len(agent):
        return None
    return [turn._replace(text=" ".join(line.split())) for turn, line in zip(agent, lines, strict=True)]


def _kind(pair: Pair) -> Kind:
    rate = pair.hypothesis.agent.file.sample_rate
    user, reference = _user(pair), pair.reference.agent
    return Kind(
        sample_rate=rate,
        user_sample_rate=user.file.sample_rate if user else rate,
        reference_sample_rate=reference.file.sample_rate if reference else 0,
        is_heard=pair.reference.text is None,
    )


def _user(pair: Pair) -> Track | None:
    return pair.hypothesis.user or pair.reference.user


def _duration_s(pair: Pair) -> float:
    tracks = [pair.hypothesis.agent, _user(pair), pair.reference.agent]
    return max(track.file.duration_s for track in tracks if track)


def _read_user(pair: Pair, agent: Samples) -> Samples:
    """Return the user's audio [S], or silence as long as the agent's."""
    track = _user(pair)
    return track.read() if track else np.zeros_like(agent)


def _as_long(pair: Pair, agent: Samples, reference: Samples) -> Samples:
    """Return the agent's audio; where the reference is one turn without times, at least as long as its speech."""
    missing = 0 if pair.reference.turns else max(0, len(reference) - len(agent))
    return np.pad(agent, (0, missing))


def _heard(
    pairs: Sequence[Pair], references: list[Samples], sample_rate: int, transcriber: Transcriber | None
) -> list[str]:
    if transcriber is None:
        raise ValueError(
            f"the reference of {pairs[0].name!r} is speech alone, and the recogniser is none: choose one, or write "
            "the text into ID.txt"
        )
    return transcriber.transcribe(references, sample_rate)


def _rows(key: str, audios: Sequence[Samples]) -> dict[str, Tensor]:
    """Return ``key`` [B, S] and its lens [B]; nothing where there is no audio."""
    if not audios:
        return {}
    rows = [torch.from_numpy(audio) for audio in audios]
    return {key: pad_sequence(rows, batch_first=True), f"{key}_lens": torch.tensor([len(row) for row in rows])}


def _spans(turns: Sequence[Turn] | None) -> list[tuple[float, float, str]]:
    return [(turn.start_s, turn.start_s + turn.duration_s, turn.text) for turn in turns or []]
