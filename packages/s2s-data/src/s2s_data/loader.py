"""Loaders for training and validation: who gets which batch when.

A stream of batches is a function of the config, the data-parallel rank and the worker alone. So peers of one
data-parallel rank (tensor or context parallel) get the same batches. Where it stands is a small
:class:`StreamPosition`, from which a run goes on.
"""

import logging
import math
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from lhotse.cut import Cut
from omegaconf import DictConfig
from torch import Tensor, distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from s2s_data.augment.chain import build_augmentations
from s2s_data.batch import DuplexBatch
from s2s_data.blend import Blend, parse_blend
from s2s_data.config import DataConfig, SourceConfig, TrainDataConfig, as_data_config, validation_sets
from s2s_data.dataset import TEXT_ONLY, DuplexDataset, is_text_only
from s2s_data.dialogue import IntArray
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.loading import BatchLoader, UnreadableCuts
from s2s_data.position import StreamPosition, WorkerPosition
from s2s_data.roles import check_roles
from s2s_data.sampling import Buckets, CutFilter, batches_in_order, last_bound_s, make_buckets, window_batches
from s2s_data.share import Share, derive_seed
from s2s_data.sources import CutRef, nothing_left, once
from s2s_data.tokenizer import TextTokenizer
from s2s_data.windows import Cursor, Filter, LeftOut, SourceStream, WindowPosition, WindowReader
from s2s_data.worker_signals import leave_sigterm_to_parent

# Roles are looked for in so many cuts of each source before they are said to be missing.
MAX_CUTS_SEARCHED = 10_000
# So many dialogues in a row that can't be loaded end a run, whatever max_unreadable_share is.
MAX_SKIPPED = 1000

# The keys of a config that set which dialogues are in which batch.
_ORDER_KEYS = (
    "batch_size",
    "batch_duration",
    "quadratic_duration",
    "min_duration",
    "max_duration",
    "min_tps",
    "max_tps",
    "shuffle",
    "shuffle_buffer_size",
    "use_bucketing",
    "num_buckets",
    "bucket_duration_bins",
    "bucket_batch_size",
    "bucket_buffer_size",
    "num_cuts_for_bins_estimate",
)

# Larger tensors go from a worker to the main process in shared memory.
MAX_PIPED_BYTES = 64 * 1024

# Two tokenizers that agree on this count tokens alike.
_PROBE = "It's 12 o'clock: what, when and where?"

logger = logging.getLogger(__name__)

T = TypeVar("T")


def train_dataloader(
    cfg: DataConfig | DictConfig,
    tokenizer: TextTokenizer,
    *,
    dp_rank: int = 0,
    dp_world_size: int = 1,
    codec_fingerprint: str | None = None,
    silence_codes_K: IntArray | None = None,
) -> "TrainLoader":
    """Return the endless training batches of one data-parallel rank.

    Parameters
    ----------
    cfg
        The ``data`` config.
    tokenizer
        Makes the text channels.
    dp_rank, dp_world_size
        Data-parallel rank and size. No dialogue goes to two ranks or two workers.
    codec_fingerprint
        The model's codec: stored codes of another one are refused.
    silence_codes_K
        [K] that codec's codes of a silent frame; augmentations of stored codes need them.

    Raises
    ------
    DataError
        For data that is missing or unreadable, roles that match nothing, or fewer dialogues than streams.

    """
    cfg = as_data_config(cfg)
    train, where = cfg.train_ds, "data.train_ds"
    blend, dataset = _open(cfg, train, where, tokenizer, codec_fingerprint)
    reject = CutFilter(train, dataset.count_tokens, last_bound_s(train))
    per_source = -(-train.num_cuts_for_bins_estimate // len(blend.leaves))
    sample = (cut for cut in blend.metadata(per_source) if reject(cut) is None)
    augment = build_augmentations(train.augment, silence_codes_K=silence_codes_K, where=f"{where}.augment")
    stream = TrainStream(
        blend,
        train,
        BatchLoader(
            dataset,
            UnreadableCuts(train.max_unreadable_share, where),
            augment if augment.steps else None,
            num_workers=train.num_workers,
        ),
        reject,
        make_buckets(sample, train, dataset.count_tokens, where),
        dp_rank=dp_rank,
        dp_world_size=dp_world_size,
        seed=_resolve_seed(train),
    )
    stream.check_shares()
    return TrainLoader(stream)


def validation_dataloaders(
    cfg: DataConfig | DictConfig,
    tokenizer: TextTokenizer,
    *,
    dp_rank: int = 0,
    dp_world_size: int = 1,
    codec_fingerprint: str | None = None,
    section: str = "validation_ds",
) -> "dict[str, DataLoader[DuplexBatch]]":
    """Return a loader for each named set of ``data.<section>``, in the order of the config.

    Each dialogue of a set goes to one rank, once. All ranks get equally many batches of a set: at its end a
    rank may get an empty one (B = 0, see :func:`s2s_data.batch.empty_batch`).

    Parameters are those of :func:`train_dataloader`. Raises :class:`DataError` likewise.
    """
    cfg = as_data_config(cfg)
    loaders = {}
    for name, set_cfg in validation_sets(getattr(cfg, section), section).items():
        where = f"data.{section}.datasets.{name}"
        blend, dataset = _open(cfg, set_cfg, where, tokenizer, codec_fingerprint)
        for cut in blend.metadata(MAX_CUTS_SEARCHED):
            if is_text_only(cut):
                raise DataError(
                    f"{where}: cut {cut.id} is text alone ({TEXT_ONLY}), and a validation listens and answers: take it "
                    "out"
                )
        unreadable = UnreadableCuts(set_cfg.max_unreadable_share, where)
        loader = BatchLoader(dataset, unreadable, num_workers=set_cfg.num_workers)
        stream = ValidationStream(blend, set_cfg, loader, dp_rank=dp_rank, dp_world_size=dp_world_size)
        loaders[name] = DataLoader(stream, **_worker_args(set_cfg))
    return loaders


class _Loaded(NamedTuple):
    """A batch, and where its worker stands behind it."""

    batch: dict[str, Any]
    worker: int
    position: WorkerPosition


class TrainStream(IterableDataset[_Loaded]):
    """The endless batches of one rank, drawn by its workers in turn: a window each, then its batches."""

    def __init__(
        self,
        blend: Blend,
        cfg: TrainDataConfig,
        load: BatchLoader,
        reject: Filter,
        buckets: Buckets,
        *,
        dp_rank: int,
        dp_world_size: int,
        seed: int,
    ) -> None:
        self.blend = blend
        self.cfg = cfg
        self.load = load
        self.reject = reject
        self.buckets = buckets
        self.dp_rank = dp_rank
        self.dp_world_size = dp_world_size
        num_workers = max(1, cfg.num_workers)
        self.position = StreamPosition(
            seed=seed,
            seed_config=f"seed={cfg.seed}, shard_seed={cfg.shard_seed}",
            order=self._order(),
            dp_world_size=dp_world_size,
            next_worker=0,
            workers=(None,) * num_workers,
        )

    def __iter__(self) -> Iterator[_Loaded]:
        process, num_workers = _worker()
        worker = (process + self.position.next_worker) % num_workers  # PyTorch starts its round with process 0
        num_skipped = 0
        for refs, position in self.planned(worker):
            seed = derive_seed(
                self.position.seed, self.dp_rank, worker, position.window.num_drawn, position.num_batches
            )
            batch = self.load(refs, seed)
            num_skipped = 0 if batch is not None else num_skipped + len(refs)
            if num_skipped > MAX_SKIPPED:
                raise DataError(f"data.train_ds: none of {num_skipped} dialogues in a row can be loaded: see above why")
            if batch is not None:
                yield _Loaded(_for_transport(batch), worker, position)

    def planned(self, worker: int) -> Iterator[tuple[list[CutRef], WorkerPosition]]:
        """Yield a worker's batches, of which only the metadata has been read, and its position behind each."""
        share = self._share(worker)
        seeds = {what: derive_seed(what, self.position.seed, share.index, share.count) for what in ("cuts", "order")}
        start = self.position.workers[worker]
        done = 0 if start is None else start.num_batches
        for window, refs in self._windows(share, seeds["cuts"], None if start is None else start.window):
            batches = window_batches(
                refs,
                self.cfg,
                self.buckets,
                seed=derive_seed(seeds["order"], window.num_drawn),
                bucket_seed=derive_seed("buckets", self.position.seed, worker, window.num_drawn),
            )
            for number, batch in islice(enumerate(batches, 1), done, None):
                yield batch, WorkerPosition(window, number)
            done = 0

    def check_shares(self) -> None:
        """Raise :class:`DataError` if a small source has no dialogue for one of the workers."""
        for worker in range(len(self.position.workers)):
            share = self._share(worker)
            for leaf in self.blend.leaves:
                is_small = leaf.source.num_shards < share.count
                if is_small and not any(self.reject(cut) is None for cut in leaf.source.metadata(share)):
                    raise nothing_left(leaf.source, share)

    def _windows(
        self, share: Share, seed: int, start: WindowPosition | None
    ) -> Iterator[tuple[WindowPosition, list[CutRef]]]:
        """Read windows, each while the batches of the one before it are loaded."""
        leaves = self.blend.leaves
        cursors = start.cursors if start is not None else (Cursor(),) * len(leaves)
        streams = [
            SourceStream(
                leaf.source,
                share,
                seed=derive_seed(seed, number) if self.cfg.shuffle else None,
                reject=self.reject,
                lost=self.load.unreadable.add_lost,
                with_target_audio=self.load.dataset.load_target_audio,
                cursor=cursor,
            )
            for number, (leaf, cursor) in enumerate(zip(leaves, cursors, strict=True))
        ]
        num_drawn = start.num_drawn if start is not None else 0
        reader = WindowReader(self.blend, streams, size=self._window_size(share), seed=seed, num_drawn=num_drawn)
        with ThreadPoolExecutor(1, thread_name_prefix="s2s-data-windows") as ahead:
            following = ahead.submit(reader.next)
            while True:
                window = following.result()
                following = ahead.submit(reader.next)
                yield window

    def _window_size(self, share: Share) -> int:
        """Return the number of dialogues in a window: of a small blend, no more than it has."""
        size = self.cfg.bucket_buffer_size if self.cfg.use_bucketing else self.cfg.shuffle_buffer_size
        wanted, num_cuts = size * share.count, 0
        for leaf in self.blend.leaves:
            num_cuts += leaf.source.num_cuts(at_least=wanted - num_cuts)
            if num_cuts >= wanted:
                break
        batch_size = self.cfg.batch_size or 1  # batches end with their window
        return math.ceil(max(1, min(size, num_cuts // share.count)) / batch_size) * batch_size

    def _share(self, worker: int) -> Share:
        return Share.of(self.dp_rank, self.dp_world_size, worker, len(self.position.workers))

    def _order(self) -> str:
        """Fingerprint what sets the order of the data, beside the seed and the ranks."""
        sources = [(leaf.source.identity, leaf.weight, leaf.source.convert) for leaf in self.blend.leaves]
        config = [getattr(self.cfg, key) for key in _ORDER_KEYS]
        dataset = self.load.dataset
        text = (sorted(dataset.roles.output_roles), dataset.tokenizer.text_to_ids(_PROBE))
        return blake2b(repr((sources, config, self.buckets.bounds, text)).encode(), digest_size=8).hexdigest()


class TrainLoader:
    """A rank's training batches, and where it stands in them.

    Iterating goes on from the position, in as many worker processes as configured; it never ends.
    """

    def __init__(self, stream: TrainStream) -> None:
        self.stream = stream
        self.position = stream.position
        self._is_iterated = False

    def __iter__(self) -> Iterator[DuplexBatch]:
        self.stream.position = self.position
        items = iter(DataLoader(self.stream, **_worker_args(self.stream.cfg)))
        end_workers = getattr(items, "_shutdown_workers", None)
        self._is_iterated = True
        try:
            for item in items:
                workers = list(self.position.workers)
                workers[item.worker] = item.position
                following = (item.worker + 1) % len(workers)
                self.position = replace(self.position, workers=tuple(workers), next_worker=following)
                yield _from_transport(item.batch)
        finally:
            self._is_iterated = False
            # Left to the garbage collector, a worker that is in the middle of a batch holds the process up for 5 s.
            if end_workers is not None:
                end_workers()

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch that was handed out: numbers, strings and lists."""
        return self.position.as_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind a position, bit for bit as the run that stopped there would have.

        That takes the same data, config, ``dp_world_size`` and ``num_workers``. Where one of them has changed the
        loader says so and starts a new order: some dialogues of the pass in progress then come twice or not at all.

        Raises :class:`ValueError` while the loader is being iterated.
        """
        if self._is_iterated:
            raise ValueError("load_state_dict comes before iterating, not in the middle: end the iteration first")
        saved, mine = StreamPosition.from_dict(state), self.position
        changes = {
            "the number of data-parallel ranks": (saved.dp_world_size, mine.dp_world_size),
            "data.train_ds.num_workers": (len(saved.workers), len(mine.workers)),
            "data.train_ds.seed or shard_seed": (saved.seed_config, mine.seed_config),
            "the data or the config of data.train_ds": (saved.order, mine.order),
        }
        if changed := [what for what, (before, now) in changes.items() if before != now]:
            logger.warning(
                "%s changed since the checkpoint: training goes on with the data in a new order, and some dialogues of "
                "the pass in progress will come twice or not at all",
                " and ".join(changed),
            )
            # Not the order that the run began with; ranks take batches of like duration, so they share the seed.
            self.position = replace(mine, seed=derive_seed("resumed", saved.seed, mine.seed, saved.order))
        else:
            self.position = saved


class ValidationStream(IterableDataset[DuplexBatch]):
    """The batches of one rank for one validation set: the same number on every rank."""

    def __init__(self, blend: Blend, cfg: SourceConfig, load: BatchLoader, *, dp_rank: int, dp_world_size: int) -> None:
        self.blend = blend
        self.cfg = cfg
        self.load = load
        self.dp_rank = dp_rank
        self.dp_world_size = dp_world_size

    def __iter__(self) -> Iterator[DuplexBatch]:
        process, num_workers = _worker()
        for refs, peers in islice(self._steps(), process, None, num_workers):
            batch = self.load(refs, seed=0) if refs else None
            yield self.load.dataset.empty(_first_loaded(peers)) if batch is None else batch

    def __len__(self) -> int:
        """Number of batches, where it can be told without reading the data's durations."""
        cfg = self.cfg
        filters = (cfg.batch_duration, cfg.min_duration, cfg.max_duration, cfg.min_tps, cfg.max_tps)
        if any(value is not None for value in filters):
            raise TypeError("the number of batches depends on the data")
        assert cfg.batch_size is not None
        return math.ceil(self.blend.num_cuts() / (cfg.batch_size * self.dp_world_size))

    def _steps(self) -> Iterator[tuple[list[CutRef], list[CutRef]]]:
        """Yield for each step the dialogues of this rank, and of all ranks."""
        with_target_audio = self.load.dataset.load_target_audio
        reject = CutFilter(self.cfg, self.load.dataset.count_tokens)
        says = self.dp_rank == 0 and _worker()[0] == 0
        left_out = [LeftOut(leaf.source.where, reject, says=says) for leaf in self.blend.leaves]
        refs = (
            ref
            for leaf, counts in zip(self.blend.leaves, left_out, strict=True)
            for ref in once(leaf.source, with_target_audio=with_target_audio)
            if counts.takes(ref.cut)
        )
        batches = batches_in_order(refs, self.cfg)
        while step := list(islice(batches, self.dp_world_size)):
            everyone = [ref for batch in step for ref in batch]
            is_full = len(step) == self.dp_world_size
            mine = step[self.dp_rank] if is_full else everyone[self.dp_rank :: self.dp_world_size]
            yield mine, everyone


def _first_loaded(refs: list[CutRef]) -> list[Cut]:
    """Load the first dialogue that can be loaded: what fields it has shows in its data."""
    for ref in refs:
        with suppress(UnreadableCutError):
            return [ref.load()]
    return [refs[0].cut]


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _open(
    cfg: DataConfig, source: SourceConfig, where: str, tokenizer: TextTokenizer, codec_fingerprint: str | None
) -> tuple[Blend, DuplexDataset]:
    """Find the data of ``source``, and make what loads it; raises :class:`DataError` if a role matches nothing."""
    blend = blend_of(source, where)
    load_target_audio = source.load_target_audio or not blend.has_codes
    dataset = dataset_of(cfg, tokenizer, load_target_audio=load_target_audio, codec_fingerprint=codec_fingerprint)
    check_roles(blend.metadata(MAX_CUTS_SEARCHED), dataset.roles, where)
    return blend, dataset


def blend_of(source: SourceConfig, where: str) -> Blend:
    """Find the data of a config's section; ``where`` names it in errors. Raises :class:`DataError` as parse_blend."""
    return parse_blend(
        where,
        input_cfg=source.input_cfg,
        shar_path=source.shar_path,
        cuts_path=source.cuts_path,
        reweight_temperature=getattr(source, "reweight_temperature", None),
        max_open_streams=getattr(source, "max_open_streams", None),
    )


def dataset_of(cfg: DataConfig, tokenizer: TextTokenizer, **options: Any) -> DuplexDataset:
    """Make what turns dialogues into batches as the config says; ``options`` are its further arguments."""
    return DuplexDataset(
        tokenizer,
        frame_length=cfg.frame_length,
        source_sample_rate=cfg.source_sample_rate,
        target_sample_rate=cfg.target_sample_rate,
        input_roles=cfg.input_roles,
        output_roles=cfg.output_roles,
        spread_source_text=cfg.spread_source_text,
        spread_target_text=cfg.spread_target_text,
        lead_target_text_by=cfg.lead_target_text_by,
        **options,
    )


def _resolve_seed(cfg: SourceConfig) -> int:
    if cfg.shard_seed == "randomized":
        return cfg.seed
    if cfg.shard_seed != "trng":
        return int(cfg.shard_seed)
    drawn = [secrets.randbelow(2**31)]
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(drawn, src=0)  # peers of one data-parallel rank need the same batches
    return drawn[0]


def _worker_args(cfg: SourceConfig) -> dict[str, Any]:
    return {
        "batch_size": None,  # the stream's items are batches
        "num_workers": cfg.num_workers,
        "pin_memory": cfg.pin_memory and torch.cuda.is_available(),
        "collate_fn": _as_it_is,
        "worker_init_fn": leave_sigterm_to_parent,
    }


def _for_transport(batch: DuplexBatch) -> dict[str, Any]:
    """Make arrays of a worker's small tensors: a tensor takes a file in shared memory, an array bytes in a pipe."""
    if get_worker_info() is None:
        return dict(batch)
    is_small = {key: isinstance(x, Tensor) and x.nbytes < MAX_PIPED_BYTES for key, x in batch.items()}
    return {key: cast(Tensor, x).numpy() if is_small[key] else x for key, x in batch.items()}


def _from_transport(batch: dict[str, Any]) -> DuplexBatch:
    """Undo :func:`_for_transport`."""
    tensors = {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in batch.items()}
    return cast(DuplexBatch, tensors)


def _as_it_is(item: T) -> T:
    return item
