"""Summing up a corpus."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from lhotse.cut import MonoCut
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

from s2s_data.errors import DataError
from s2s_data.inputs import find_parts
from s2s_data.roles import Roles
from s2s_data.stats.measure import Measured, Side, measure

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

DIALOGUES_A_BUCKET = 20  # with fewer, batches of a bucket are the same dialogues again and again


@dataclass(frozen=True)
class Quantiles:
    """How a quantity is spread."""

    count: int
    mean: float
    quantiles: tuple[float, ...]  # at QUANTILES; the median is in the middle

    @classmethod
    def of(cls, values: Sequence[float]) -> "Quantiles | None":
        """Return the quantiles of ``values``, None if there are none."""
        if not values:
            return None
        return cls(len(values), float(np.mean(values)), tuple(float(value) for value in np.quantile(values, QUANTILES)))


@dataclass(frozen=True)
class SideStats:
    """What the user, or the agent, does."""

    num_turns: int
    speech_s: float
    num_tokens: int
    tokens_per_s: float | None  # in its turns
    turn_s: Quantiles | None
    response_s: Quantiles | None  # after the other side's end
    interruption_s: Quantiles | None  # how long both speak where this side cuts in; the user's are barge-ins


@dataclass(frozen=True)
class CorpusStats:
    """A corpus in numbers."""

    num_dialogues: int
    hours: float
    duration_s: Quantiles
    user: SideStats
    agent: SideStats
    overlap_s: float
    silence_s: float
    bucket_duration_bins: list[float]
    num_text_only: int = 0  # dialogues of text alone, in none of the figures above


def corpus_stats(data: str | Sequence[str], roles: Roles, *, num_buckets: int = 30) -> CorpusStats:
    """Sum up Shars and blends by their manifests; words stand for tokens.

    Parameters
    ----------
    data
        Shar folders and blend files (``.yaml``), one or several.
    roles
        Whose supervisions are whose.
    num_buckets
        For ``bucket_duration_bins``; on little data they are fewer, one for each 20 dialogues.

    Raises
    ------
    DataError
        If data is missing or broken, or there is no cut in it.

    """
    return summarise(measure_data(data, roles), num_buckets=num_buckets)


def measure_data(
    data: str | Sequence[str], roles: Roles, count_tokens: Callable[[str], int] = lambda text: len(text.split())
) -> Measured:
    """Measure Shars and blends by their manifests; raises :class:`DataError` as :func:`corpus_stats` does."""
    parts = find_parts([data] if isinstance(data, str) else data)
    measured = measure(chain.from_iterable(part.metadata() for part in parts), roles, count_tokens)
    if not measured.durations_s:
        if measured.num_text_only:
            raise DataError(
                f"{data}: all of its {measured.num_text_only} dialogues are text alone: nothing is said in it"
            )
        raise DataError(f"{data}: there is no cut in it: look whether the export was finished")
    return measured


def summarise(measured: Measured, *, num_buckets: int = 30) -> CorpusStats:
    """Sum up measurements of at least one dialogue."""
    duration_s = Quantiles.of(measured.durations_s)
    assert duration_s is not None
    return CorpusStats(
        num_dialogues=len(measured.durations_s),
        hours=sum(measured.durations_s) / 3600,
        duration_s=duration_s,
        user=_side(measured.user),
        agent=_side(measured.agent),
        overlap_s=measured.overlap_s,
        silence_s=measured.silence_s,
        bucket_duration_bins=_bins(measured.durations_s, num_buckets),
        num_text_only=measured.num_text_only,
    )


def _side(side: Side) -> SideStats:
    turns_s = sum(side.turn_s)
    return SideStats(
        num_turns=len(side.turn_s),
        speech_s=side.speech_s,
        num_tokens=sum(side.num_tokens),
        tokens_per_s=sum(side.num_tokens) / turns_s if turns_s > 0 else None,
        turn_s=Quantiles.of(side.turn_s),
        response_s=Quantiles.of(side.response_s),
        interruption_s=Quantiles.of(side.interrupted_s),
    )


def _bins(durations_s: Sequence[float], num_buckets: int) -> list[float]:
    """Return durations between which there is as much audio in each bucket: lhotse's, as the loader has them."""
    num_buckets = min(num_buckets, len(durations_s) // DIALOGUES_A_BUCKET)
    if num_buckets < 2:
        return []
    cuts = (MonoCut("", start=0, duration=duration_s, channel=0) for duration_s in durations_s)
    bins = estimate_duration_buckets(cuts, num_buckets)
    rounded = {round(float(bound), 2) for bound in bins}
    return sorted(bound for bound in rounded if bound < max(durations_s))  # nothing is longer: an empty bucket
