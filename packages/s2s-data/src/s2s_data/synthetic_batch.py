"""Batches of given durations without data, in the very format of a config's training batches.

Shapes: ``T`` frames (80 ms), ``S`` samples of user audio, ``R`` samples of agent audio, ``K`` codebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from lhotse.utils import compute_num_samples

from s2s_data.augment.config import AugmentConfig
from s2s_data.batch import DuplexBatch, Turn
from s2s_data.config import DataConfig, TrainDataConfig
from s2s_data.dialogue import Dialogue
from s2s_data.errors import DataError
from s2s_data.loader import blend_of, dataset_of
from s2s_data.roles import AGENT
from s2s_data.sampling import CutFilter
from s2s_data.text_channel import FrameGrid
from s2s_data.tokenizer import TextTokenizer

_WHERE = "data.train_ds"
_STEP_S = 0.01  # bounds are rounded up to it, so that a config reads well


@dataclass(frozen=True)
class Bin:
    """The longest dialogue of a bucket."""

    duration_s: float
    num_tokens: int | None = None  # the agent's text tokens, where buckets have two dimensions


@dataclass(frozen=True)
class Stored:
    """How a training batch has the agent's audio."""

    audio: bool
    codes: bool


class SyntheticBatches:
    """Makes training batches of ``cfg`` out of noise.

    Parameters
    ----------
    cfg
        The ``data`` config: rates, frames and augmentations.
    tokenizer
        Makes the text channels.
    stored
        What of the agent's audio a batch holds.
    num_codebooks, codebook_size
        The codec's.

    """

    def __init__(
        self, cfg: DataConfig, tokenizer: TextTokenizer, stored: Stored, num_codebooks: int, codebook_size: int
    ) -> None:
        self._stored = stored
        self._codec = (num_codebooks, codebook_size)
        self._augment = cfg.train_ds.augment
        self._dataset = dataset_of(cfg, tokenizer)

    def make(self, num_dialogues: int, longest: Bin) -> DuplexBatch:
        """Return a batch of dialogues that all last as long as augmentation may make the longest of a bucket.

        All frames count, and half of them (or as many as the bucket allows) have text of the agent's.
        """
        return self.mixed([longest] * num_dialogues)

    def mixed(self, dialogues: Sequence[Bin]) -> DuplexBatch:
        """Return a batch of dialogues as :meth:`make` has them, each of its own length."""
        of_length = {longest: self._dialogue(longest) for longest in set(dialogues)}
        return self._dataset.collate([of_length[longest] for longest in dialogues])

    def _dialogue(self, longest: Bin) -> Dialogue:
        dataset = self._dataset
        duration_s = lengthened(longest.duration_s, self._augment, dataset.frame_length_s)
        grid = FrameGrid.of(duration_s, dataset.frame_length_s, dataset.source_sample_rate_hz)
        rng = np.random.default_rng(0)
        num_words = grid.num_frames // 2 if longest.num_tokens is None else longest.num_tokens
        source_S, target_R = (
            0.1 * rng.standard_normal(compute_num_samples(duration_s, rate_hz), dtype=np.float32)
            for rate_hz in (dataset.source_sample_rate_hz, dataset.target_sample_rate_hz)
        )
        num_codebooks, codebook_size = self._codec
        return Dialogue(
            cut_id="synthetic",
            duration_s=duration_s,
            grid=grid,
            turns=(Turn(AGENT, 0.0, duration_s, " ".join(["so"] * num_words)),),
            source_S=source_S,
            source_rate_hz=dataset.source_sample_rate_hz,
            target_R=target_R if self._stored.audio else None,
            target_rate_hz=dataset.target_sample_rate_hz,
            codes_TK=rng.integers(codebook_size, size=(grid.num_frames, num_codebooks)) if self._stored.codes else None,
        )


def lengthened(duration_s: float, augment: AugmentConfig, frame_length_s: float) -> float:
    """Return how long the augmentations may make a dialogue of ``duration_s``, in seconds."""
    if augment.random_silence is not None:
        duration_s += augment.random_silence.num_frames_max * frame_length_s
    if augment.speed is not None:
        duration_s /= min(augment.speed.factor_min, 1.0)
    return duration_s


def stored_in(cfg: DataConfig) -> Stored:
    """Return what of the agent's audio the largest batches of ``cfg.train_ds`` hold.

    Where an augmentation changes that audio its stored codes are dropped, and the model encodes it.

    Raises :class:`DataError` for data that isn't there.
    """
    train = cfg.train_ds
    has_codes = blend_of(train, _WHERE).has_codes
    volume = train.augment.volume
    changes_audio = (
        train.augment.speed is not None
        or train.augment.role_swap is not None
        or (volume is not None and (volume.agent_gain_db_min, volume.agent_gain_db_max) != (0, 0))
    )
    codes = has_codes and not changes_audio
    return Stored(audio=train.load_target_audio or not codes, codes=codes)


def configured_bins(train: TrainDataConfig) -> list[Bin] | None:
    """Return ``bucket_duration_bins`` as they are; None if there are none."""
    if not train.bucket_duration_bins:
        return None
    return [
        Bin(float(b)) if isinstance(b, int | float) else Bin(float(b[0]), int(b[1])) for b in train.bucket_duration_bins
    ]


def estimate_bins(cfg: DataConfig, tokenizer: TextTokenizer, num_buckets: int) -> tuple[list[Bin], str]:
    """Return bins that hold about as much of the training data each, and what they rest on.

    The last one is ``max_duration``, or the longest dialogue if that is shorter and all manifests were read.
    Raises :class:`DataError` if there is no data, or none that the config takes.
    """
    train = cfg.train_ds
    blend, dataset = blend_of(train, _WHERE), dataset_of(cfg, tokenizer)
    reject = CutFilter(train, dataset.count_tokens)
    per_source = ceil(train.num_cuts_for_bins_estimate / len(blend.leaves))
    read = list(blend.metadata(per_source))
    sample = [cut for cut in read if reject(cut) is None]
    if not sample:
        raise DataError(f"{_WHERE}: all of {len(read)} dialogues are left out by its limits: there are no bins to find")
    longest_s = max(cut.duration for cut in sample)
    if train.max_duration is not None and len(read) < blend.num_cuts():
        longest_s = max(longest_s, train.max_duration)
    number = min(num_buckets, len(sample))
    quantiles = estimate_duration_buckets(sample, number) if number > 1 else []
    bounds = sorted({_rounded_up(bound) for bound in (*quantiles, longest_s)})
    return [Bin(bound) for bound in bounds], f"{len(sample)} dialogues of {_WHERE}, the longest {longest_s:.2f} s"


def _rounded_up(duration_s: float) -> float:
    return round(ceil(round(duration_s / _STEP_S, 6)) * _STEP_S, 2)
