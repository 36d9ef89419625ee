"""Windows of dialogues to batches, and what is left out.

Everything here is a function of its arguments: lhotse's samplers hang on the id of the worker process and on
counters that iterating leaves behind, so that a run which resumes wouldn't get the same batches. Its constraints
and its estimate of buckets are used.
"""

import logging
import random
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, TypeVar

from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets

from s2s_data.config import SourceConfig, TrainDataConfig
from s2s_data.errors import DataError


class HasCut(Protocol):
    """What batches are made of."""

    @property
    def cut(self) -> Cut:
        """The dialogue's metadata."""


class _TooLong:
    """Says once in a process that a dialogue is longer than a batch may be."""

    said = False

    def say(self, cut: Cut, cfg: SourceConfig) -> None:
        if not self.said:
            self.said = True
            logger.warning(
                "cut %s lasts %.1f s, more than batch_duration=%s allows: it and others like it get batches of their "
                "own; max_duration would leave them out",
                cut.id,
                cut.duration,
                cfg.batch_duration,
            )


_too_long = _TooLong()
logger = logging.getLogger(__name__)

Item = TypeVar("Item", bound=HasCut)
CountTokens = Callable[[Cut], int]  # the agent's text tokens


@dataclass(frozen=True)
class CutFilter:
    """Says why a cut is left out: its duration, or its text tokens a second."""

    cfg: SourceConfig
    count_tokens: CountTokens
    last_bucket_s: float | None = None  # where buckets have batch sizes of their own

    def __call__(self, cut: Cut) -> str | None:
        """Return the reason, or None."""
        cfg = self.cfg
        if cfg.min_duration is not None and cut.duration < cfg.min_duration:
            return f"shorter than min_duration {cfg.min_duration:g} s"
        if cfg.max_duration is not None and cut.duration > cfg.max_duration:
            return f"longer than max_duration {cfg.max_duration:g} s"
        if self.last_bucket_s is not None and cut.duration > self.last_bucket_s:
            return f"longer than the last bucket, {self.last_bucket_s:g} s"
        return self._wrong_text_rate(cut)

    def _wrong_text_rate(self, cut: Cut) -> str | None:
        cfg = self.cfg
        if cfg.min_tps is None and cfg.max_tps is None:
            return None
        tokens_per_second = self.count_tokens(cut) / cut.duration
        if cfg.min_tps is not None and tokens_per_second < cfg.min_tps:
            return f"below min_tps {cfg.min_tps:g}"
        if cfg.max_tps is not None and tokens_per_second > cfg.max_tps:
            return f"above max_tps {cfg.max_tps:g}"
        return None


def batches_in_order(items: Iterable[Item], cfg: SourceConfig) -> Iterator[list[Item]]:
    """Batch as they come, up to ``batch_size`` and ``batch_duration``."""
    return _batch(items, cfg.batch_size, cfg)


class Buckets:
    """The durations, or durations and numbers of text tokens, that separate the buckets.

    In one dimension bucket i holds what is longer than bound i - 1 and not longer than bound i; a last bucket holds
    what is longer than all bounds. In two, bounds are pairs, in ascending order: a dialogue belongs to the first
    pair of which neither is exceeded, and to the last bucket if there is none.
    """

    def __init__(self, bounds: Sequence[float | Sequence[float]], count_tokens: CountTokens) -> None:
        self._pairs = [tuple(bound) for bound in bounds if isinstance(bound, Sequence)]
        self._bounds_s = [float(bound) for bound in bounds if not isinstance(bound, Sequence)]
        self._count_tokens = count_tokens

    @property
    def bounds(self) -> list[Any]:
        """What separates the buckets."""
        return [*self._bounds_s, *self._pairs]

    @property
    def number(self) -> int:
        """Number of buckets."""
        return len(self._pairs or self._bounds_s) + 1

    def bucket_of(self, cut: Cut) -> int:
        """Return the number of a cut's bucket."""
        if not self._pairs:
            return bisect_left(self._bounds_s, cut.duration)
        num_tokens = self._count_tokens(cut)
        fits = (
            i for i, (longest_s, most) in enumerate(self._pairs) if cut.duration <= longest_s and num_tokens <= most
        )
        return next(fits, len(self._pairs))


def window_batches(
    window: Sequence[Item], cfg: TrainDataConfig, buckets: Buckets, *, seed: int, bucket_seed: int
) -> list[list[Item]]:
    """Shuffle a window and make batches of all of it.

    Parameters
    ----------
    window
        The dialogues.
    cfg
        Says how.
    buckets
        Used if ``use_bucketing``.
    seed
        Sets the order of dialogues.
    bucket_seed
        Sets the order of buckets: where it is the same on all ranks, they take batches of like duration at each step.

    """
    rng = random.Random(seed)
    items = list(window)
    if cfg.shuffle:
        rng.shuffle(items)
    if not cfg.use_bucketing:
        return list(_batch(items, cfg.batch_size, cfg))
    bucketed: list[list[Item]] = [[] for _ in range(buckets.number)]
    for item in items:
        bucketed[buckets.bucket_of(item.cut)].append(item)
    batches: list[list[list[Item]]] = []  # of each bucket
    rests: list[Item] = []
    for bucket, members in enumerate(bucketed):
        full = list(_batch(members, _batch_size(cfg, bucket), cfg))
        rests += full.pop() if full else []  # the last one is seldom full
        batches.append(full)
    rests.sort(key=lambda item: item.cut.duration)
    smallest = None if cfg.bucket_batch_size is None else min(cfg.bucket_batch_size)
    batches.append(list(_batch(rests, smallest or cfg.batch_size, cfg)))
    return _in_turn(batches, random.Random(bucket_seed)) if cfg.shuffle else [b for bucket in batches for b in bucket]


def _in_turn(batches: list[list[list[Item]]], rng: random.Random) -> list[list[Item]]:
    """Draw a bucket by the batches it has left, until none has any.

    Ranks that share ``rng`` and have about as many batches in each bucket draw the same bucket or one beside it.
    """
    ordered = []
    while total := sum(map(len, batches)):
        draw = int(rng.random() * total)
        for bucket in batches:
            if draw < len(bucket):
                ordered.append(bucket.pop(0))
                break
            draw -= len(bucket)
    return ordered


def make_buckets(cuts: Iterable[Cut], cfg: TrainDataConfig, count_tokens: CountTokens, where: str) -> Buckets:
    """Return the buckets: the configured ones, or quantiles of ``cuts``.

    Raises :class:`DataError` if the configured bounds don't go together.
    """
    if not cfg.use_bucketing:
        return Buckets([], count_tokens)
    if cfg.bucket_duration_bins is not None:
        bounds = [float(b) if isinstance(b, int | float) else tuple(map(float, b)) for b in cfg.bucket_duration_bins]
        _check_bounds(bounds, cfg, where)
        return Buckets(bounds, count_tokens)
    if cfg.bucket_batch_size is not None:
        raise DataError(f"{where}.bucket_batch_size needs bucket_duration_bins: one bound for each batch size")
    sample = list(cuts)
    num_buckets = min(cfg.num_buckets, len(sample))
    if num_buckets < 2:
        return Buckets([], count_tokens)
    bounds_s = estimate_duration_buckets(sample, num_buckets, _constraint(cfg, cfg.batch_size))
    return Buckets([float(bound) for bound in bounds_s], count_tokens)


def last_bound_s(cfg: TrainDataConfig) -> float | None:
    """Return the longest duration that a bucket with a batch size of its own takes; None where there is no such."""
    if not cfg.use_bucketing or cfg.bucket_batch_size is None or not cfg.bucket_duration_bins:
        return None
    last = cfg.bucket_duration_bins[-1]
    return float(last if isinstance(last, int | float) else last[0])


def _check_bounds(bounds: Sequence[object], cfg: TrainDataConfig, where: str) -> None:
    key = f"{where}.bucket_duration_bins"
    kinds = {len(bound) if isinstance(bound, tuple) else 1 for bound in bounds}
    if not bounds or len(kinds) > 1 or not kinds <= {1, 2}:
        raise DataError(f"{key} must hold durations, or pairs of [duration, text tokens], not {list(bounds)}")
    if any(later <= earlier for earlier, later in pairwise(bounds)):  # type: ignore[operator]
        raise DataError(f"{key} must ascend, but is {list(bounds)}")
    if cfg.bucket_batch_size is not None and len(cfg.bucket_batch_size) != len(bounds):
        raise DataError(
            f"{where}.bucket_batch_size has {len(cfg.bucket_batch_size)} sizes and bucket_duration_bins "
            f"{len(bounds)} bounds: give one size for each bound"
        )


def _batch_size(cfg: TrainDataConfig, bucket: int) -> int | None:
    if cfg.bucket_batch_size is None:
        return cfg.batch_size
    return cfg.bucket_batch_size[min(bucket, len(cfg.bucket_batch_size) - 1)]


def _constraint(cfg: SourceConfig, batch_size: int | None) -> TimeConstraint:
    return TimeConstraint(
        max_duration=cfg.batch_duration, max_cuts=batch_size, quadratic_duration=cfg.quadratic_duration
    )


def _batch(items: Iterable[Item], batch_size: int | None, cfg: SourceConfig) -> Iterator[list[Item]]:
    constraint = _constraint(cfg, batch_size)
    batch: list[Item] = []
    for item in items:
        constraint.add(item.cut)
        if batch and constraint.exceeded():
            yield batch
            batch = []
            constraint.reset()
            constraint.add(item.cut)
        batch.append(item)
        if len(batch) == 1 and constraint.exceeded():
            _too_long.say(item.cut, cfg)
        if constraint.close_to_exceeding():  # one more as long as the longest wouldn't fit
            yield batch
            batch = []
            constraint.reset()
    if batch:
        yield batch
