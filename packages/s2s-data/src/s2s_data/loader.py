"""DataLoaders for training and validation.

A stream of batches is a function of the config, the data-parallel rank and the worker alone. So peers of one
data-parallel rank (tensor or context parallel) get the same batches, and a run that resumes can draw the
batches anew and leave out those it has seen.
"""

import logging
import math
import secrets
from collections.abc import Iterator
from itertools import islice

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from omegaconf import DictConfig
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from s2s_data.batch import DuplexBatch
from s2s_data.blend import Blend, parse_blend
from s2s_data.config import DataConfig, SourceConfig, TrainDataConfig, as_data_config, validation_sets
from s2s_data.dataset import DuplexDataset
from s2s_data.roles import check_roles
from s2s_data.sampling import batches_in_order, duration_bins, duration_filter, training_batches
from s2s_data.share import Share, derive_seed
from s2s_data.sources import nothing_left
from s2s_data.tokenizer import TextTokenizer

# Roles are looked for in so many cuts of each source before they are said to be missing.
MAX_CUTS_SEARCHED = 10_000

logger = logging.getLogger(__name__)


def train_dataloader(
    cfg: DataConfig | DictConfig,
    tokenizer: TextTokenizer,
    *,
    dp_rank: int = 0,
    dp_world_size: int = 1,
    skip_batches: int = 0,
    codec_fingerprint: str | None = None,
) -> "DataLoader[DuplexBatch]":
    """Return the endless training batches of one data-parallel rank.

    Parameters
    ----------
    cfg
        The ``data`` config.
    tokenizer
        Makes the text channels.
    dp_rank, dp_world_size
        Data-parallel rank and size. No dialogue goes to two ranks or two workers.
    skip_batches
        Leave out this many batches: those that the rank had before it stopped. What follows is what would
        have followed, bit for bit, if the config, the data, ``dp_world_size`` and ``num_workers`` are the
        same. Skipped batches are drawn, but their audio isn't decoded.
    codec_fingerprint
        The model's codec: stored codes of another one are refused.

    Raises
    ------
    DataError
        For data that is missing or unreadable, roles that match nothing, or fewer dialogues than streams.

    """
    cfg = as_data_config(cfg)
    where = "data.train_ds"
    blend = _blend_of(cfg.train_ds, where)
    dataset = _dataset(cfg, tokenizer, cfg.train_ds, codec_fingerprint)
    _check_blend(blend, dataset, where)
    if skip_batches and cfg.train_ds.shard_seed == "trng":
        logger.warning("%s.shard_seed is trng: the run goes on with data in a new order, not where it stopped", where)
        skip_batches = 0
    per_source = -(-cfg.train_ds.num_cuts_for_bins_estimate // len(blend.sources))
    stream = TrainStream(
        blend,
        cfg.train_ds,
        dataset,
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        seed=_resolve_seed(cfg.train_ds),
        bins_s=duration_bins(filter(duration_filter(cfg.train_ds), blend.metadata(per_source)), cfg.train_ds),
        skip_batches=skip_batches,
    )
    stream.check_shares(max(1, cfg.train_ds.num_workers))
    return _dataloader(stream, cfg.train_ds)


def validation_dataloaders(
    cfg: DataConfig | DictConfig,
    tokenizer: TextTokenizer,
    *,
    dp_rank: int = 0,
    dp_world_size: int = 1,
    codec_fingerprint: str | None = None,
) -> "dict[str, DataLoader[DuplexBatch]]":
    """Return a loader for each named validation set, in the order of the config.

    Each dialogue of a set goes to one rank, once. All ranks get equally many batches of a set: at its end a
    rank may get an empty one (B = 0, see :func:`s2s_data.batch.empty_batch`).

    Parameters are those of :func:`train_dataloader`. Raises :class:`DataError` likewise.
    """
    cfg = as_data_config(cfg)
    loaders = {}
    for name, set_cfg in validation_sets(cfg.validation_ds).items():
        where = f"data.validation_ds.datasets.{name}"
        blend = _blend_of(set_cfg, where)
        dataset = _dataset(cfg, tokenizer, set_cfg, codec_fingerprint)
        _check_blend(blend, dataset, where)
        stream = ValidationStream(blend, set_cfg, dataset, dp_rank=dp_rank, dp_world_size=dp_world_size)
        loaders[name] = _dataloader(stream, set_cfg)
    return loaders


class TrainStream(IterableDataset[DuplexBatch]):
    """The endless batches of one rank, drawn by its workers in turn.

    Batch i belongs to worker i mod num_workers. PyTorch starts its round with worker 0, so after
    ``skip_batches`` each process takes the place of the worker whose turn it would have been.
    """

    def __init__(
        self,
        blend: Blend,
        cfg: TrainDataConfig,
        dataset: DuplexDataset,
        *,
        dp_rank: int,
        dp_world_size: int,
        seed: int,
        bins_s: list[float],
        skip_batches: int = 0,
    ) -> None:
        self.blend = blend
        self.cfg = cfg
        self.dataset = dataset
        self.dp_rank = dp_rank
        self.dp_world_size = dp_world_size
        self.seed = seed
        self.bins_s = bins_s
        self.skip_batches = skip_batches

    def __iter__(self) -> Iterator[DuplexBatch]:
        process, num_workers = _worker()
        rounds, rest = divmod(self.skip_batches, num_workers)
        worker = (process + rest) % num_workers
        batches = self.cut_batches(worker, num_workers)
        for cuts in islice(batches, rounds + (worker < rest), None):
            yield self.dataset[cuts]

    def cut_batches(self, worker: int, num_workers: int) -> Iterator[CutSet]:
        """Yield the batches of one worker as cuts."""
        share = self._share(worker, num_workers)
        cuts = self.blend.forever(
            share,
            seed=derive_seed("cuts", self.seed, share.index, share.count),
            shuffle=self.cfg.shuffle,
            with_target_audio=self.cfg.load_target_audio or not self.blend.has_codes,
            keep=duration_filter(self.cfg),
        )
        return training_batches(
            cuts,
            self.cfg,
            self.bins_s,
            seed=derive_seed("order", self.seed, share.index, share.count),
            bucket_seed=derive_seed("buckets", self.seed, worker),
        )

    def check_shares(self, num_workers: int) -> None:
        """Raise :class:`DataError` if a small source has no dialogue for one of the workers."""
        keep = duration_filter(self.cfg)
        for worker in range(num_workers):
            share = self._share(worker, num_workers)
            for source in self.blend.sources:
                if source.num_shards < share.count and not any(map(keep, source.metadata(share))):
                    raise nothing_left(source, share)

    def _share(self, worker: int, num_workers: int) -> Share:
        return Share.of(self.dp_rank, self.dp_world_size, worker, num_workers)


class ValidationStream(IterableDataset[DuplexBatch]):
    """The batches of one rank for one validation set: the same number on every rank."""

    def __init__(
        self, blend: Blend, cfg: SourceConfig, dataset: DuplexDataset, *, dp_rank: int, dp_world_size: int
    ) -> None:
        self.blend = blend
        self.cfg = cfg
        self.dataset = dataset
        self.dp_rank = dp_rank
        self.dp_world_size = dp_world_size

    def __iter__(self) -> Iterator[DuplexBatch]:
        process, num_workers = _worker()
        for cuts, peers in islice(self._steps(), process, None, num_workers):
            yield self.dataset[cuts] if cuts else self.dataset.empty(peers)

    def __len__(self) -> int:
        """Number of batches, where it can be told without reading the data's durations."""
        cfg = self.cfg
        if cfg.batch_duration is not None or cfg.min_duration is not None or cfg.max_duration is not None:
            raise TypeError("the number of batches depends on the durations of the data")
        assert cfg.batch_size is not None
        return math.ceil(self.blend.num_cuts() / (cfg.batch_size * self.dp_world_size))

    def _steps(self) -> Iterator[tuple[list[Cut], list[Cut]]]:
        """Yield for each step the cuts of this rank, and those of all ranks."""
        with_target_audio = self.cfg.load_target_audio or not self.blend.has_codes
        cuts = self.blend.once(with_target_audio=with_target_audio)
        batches = batches_in_order(filter(duration_filter(self.cfg), cuts), self.cfg)
        while step := list(islice(batches, self.dp_world_size)):
            everyone = [cut for batch in step for cut in batch]
            if len(step) == self.dp_world_size:
                mine = list(step[self.dp_rank])
            else:
                mine = everyone[self.dp_rank :: self.dp_world_size]
            yield mine, everyone


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _blend_of(cfg: SourceConfig, where: str) -> Blend:
    return parse_blend(where, input_cfg=cfg.input_cfg, shar_path=cfg.shar_path, cuts_path=cfg.cuts_path)


def _dataset(
    cfg: DataConfig, tokenizer: TextTokenizer, source: SourceConfig, codec_fingerprint: str | None
) -> DuplexDataset:
    return DuplexDataset(
        tokenizer,
        frame_length=cfg.frame_length,
        source_sample_rate=cfg.source_sample_rate,
        target_sample_rate=cfg.target_sample_rate,
        input_roles=cfg.input_roles,
        output_roles=cfg.output_roles,
        load_target_audio=source.load_target_audio,
        codec_fingerprint=codec_fingerprint,
    )


def _check_blend(blend: Blend, dataset: DuplexDataset, where: str) -> None:
    check_roles(blend.metadata(MAX_CUTS_SEARCHED), dataset.roles, where)


def _resolve_seed(cfg: SourceConfig) -> int:
    if cfg.shard_seed == "randomized":
        return cfg.seed
    if cfg.shard_seed != "trng":
        return int(cfg.shard_seed)
    drawn = [secrets.randbelow(2**31)]
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(drawn, src=0)  # peers of one data-parallel rank need the same batches
    return drawn[0]


def _dataloader(stream: IterableDataset[DuplexBatch], cfg: SourceConfig) -> "DataLoader[DuplexBatch]":
    return DataLoader(
        stream,
        batch_size=None,  # the stream's items are batches
        num_workers=cfg.num_workers,
        pin_memory=cfg.pin_memory and torch.cuda.is_available(),
        persistent_workers=cfg.num_workers > 0 and isinstance(stream, TrainStream),
    )
