"""Streams of cuts to streams of batches, with lhotse's batchers.

lhotse's samplers aren't used as they are: their order hangs on the id of the worker process and on counters
that iterating leaves behind, so a replay after a restart wouldn't give the same batches.
"""

import random
from collections.abc import Callable, Iterable, Iterator

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint
from lhotse.dataset.sampling.dynamic import DurationBatcher
from lhotse.dataset.sampling.dynamic_bucketing import DynamicBucketer, estimate_duration_buckets
from lhotse.utils import streaming_shuffle

from s2s_data.config import SourceConfig, TrainDataConfig


def duration_filter(cfg: SourceConfig) -> Callable[[Cut], bool]:
    """Return the test for cuts between ``min_duration`` and ``max_duration``."""
    shortest_s = cfg.min_duration if cfg.min_duration is not None else 0.0
    longest_s = cfg.max_duration if cfg.max_duration is not None else float("inf")
    return lambda cut: shortest_s <= cut.duration <= longest_s


def batches_in_order(cuts: Iterable[Cut], cfg: SourceConfig) -> Iterator[CutSet]:
    """Batch cuts as they come, up to ``batch_size`` and ``batch_duration``."""
    return iter(DurationBatcher(iter(cuts), constraint=_constraint(cfg)))


def training_batches(
    cuts: Iterator[Cut], cfg: TrainDataConfig, bins_s: list[float], *, seed: int, bucket_seed: int
) -> Iterator[CutSet]:
    """Shuffle and batch an endless stream of cuts.

    Parameters
    ----------
    cuts
        The stream.
    cfg
        Says how.
    bins_s
        The durations that separate the buckets, if ``use_bucketing``.
    seed
        Sets the order of cuts.
    bucket_seed
        Sets the order of buckets: where it is the same on all ranks, they take batches of like duration at
        each step.

    """
    rng = random.Random(seed)
    if cfg.use_bucketing:
        bucketer = DynamicBucketer(
            ((cut,) for cut in cuts),  # lhotse's batcher takes tuples of parallel cuts
            duration_bins=bins_s,
            world_size=1,
            constraint=_constraint(cfg),
            buffer_size=cfg.bucket_buffer_size,
            shuffle=cfg.shuffle,
            rng=rng,
            bucket_rng=random.Random(bucket_seed),
        )
        return iter(bucketer)
    if cfg.shuffle:
        cuts = streaming_shuffle(cuts, bufsize=cfg.shuffle_buffer_size, rng=rng)
    return batches_in_order(cuts, cfg)


def duration_bins(cuts: Iterable[Cut], cfg: TrainDataConfig) -> list[float]:
    """Return the durations that separate the buckets: the configured ones, or quantiles of ``cuts``."""
    if not cfg.use_bucketing:
        return []
    if cfg.bucket_duration_bins is not None:
        return sorted(cfg.bucket_duration_bins)
    sample = list(cuts)
    num_buckets = min(cfg.num_buckets, len(sample))
    if num_buckets < 2:
        return []
    return [float(bound) for bound in estimate_duration_buckets(sample, num_buckets, _constraint(cfg))]


def _constraint(cfg: SourceConfig) -> TimeConstraint:
    return TimeConstraint(
        max_duration=cfg.batch_duration, max_cuts=cfg.batch_size, quadratic_duration=cfg.quadratic_duration
    )
