"""`calibrate`: the largest batch of each duration bin that fits, found by real training steps."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from s2s_data.config import DataConfig, has_source
from s2s_data.synthetic_batch import (
    Bin,
    Stored,
    SyntheticBatches,
    configured_bins,
    estimate_bins,
    lengthened,
    stored_in,
)
from s2s_train.calibrate_memory import GIB, Memory, memory_of
from s2s_train.calibrate_search import largest_that_fits
from s2s_train.calibrate_steps import Trial, Trials, smallest_of_ranks
from s2s_train.config import AppConfig
from s2s_train.data_module import data_parallel_place
from s2s_train.fit import ModelBuilder, say
from s2s_train.trainer import build_trainer

STORED = {"codes": Stored(False, True), "audio": Stored(True, False), "both": Stored(True, True)}
DEFAULT_BUCKETS = 8


@dataclass(frozen=True)
class CalibrateArgs:
    """The command's arguments beside the config."""

    num_buckets: int | None = None
    bins_s: tuple[float, ...] | None = None
    memory_share: float = 0.95
    memory_gib: float | None = None
    max_batch_size: int = 4096
    stored: str | None = None  # a key of STORED; by default what the data has


@dataclass(frozen=True)
class Sized:
    """A bin with its batch size."""

    bin: Bin
    batch_size: int
    trial: Trial
    audio_s: float  # of a step, over all data parallel ranks


@dataclass(frozen=True)
class Calibrated:
    """What was found, on the same terms for all bins."""

    sized: list[Sized]
    limit_bytes: int
    max_batch_size: int
    notes: list[str]


def calibrate(cfg: AppConfig, args: CalibrateArgs, build_model: ModelBuilder) -> Calibrated:
    """Find the largest batch of each bin with the model, precision, optimizer and strategy of `cfg`.

    Raises:
        ValueError, OSError: what the user can mend: no data to take bins from, no memory limit on a CPU, or a bin of
            which not even one dialogue fits.
    """
    check_args(args)
    seed_everything(cfg.seed, workers=True, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        search = Calibration(lambda device: memory_of(device, args.memory_share, args.memory_gib), args.max_batch_size)
        trainer = build_trainer(_only_training(cfg), loggers=[], callbacks=[search], root_dir=folder)
        model: Any = build_model(cfg)
        bins, note = bins_of(cfg.data, args, model.tokenizer)
        stored = _stored(cfg.data, args)
        codec = model.audio_codec
        search.bins = bins
        search.make_batch = SyntheticBatches(
            cfg.data, model.tokenizer, stored, codec.num_codebooks, codec.codebook_size
        ).make
        say(f"bins up to {', '.join(f'{b.duration_s:g}' for b in bins)} s, from {note}")
        no_data: Any = [{}]  # the search ends training before it is read
        trainer.fit(model, DataLoader(no_data, batch_size=None))
    return Calibrated(search.sized, search.limit_bytes, args.max_batch_size, _notes(cfg, stored, bins))


class Calibration(Callback):
    """Searches when training is about to begin, model and optimizer being where it would have them; then ends it."""

    def __init__(self, make_memory: Callable[[torch.device], Memory], max_batch_size: int) -> None:
        self._make_memory = make_memory
        self._most = max_batch_size
        self._trials: Trials | None = None
        self.bins: Sequence[Bin] = []
        self.make_batch: Callable[[int, Bin], Any] = lambda size, longest: {}
        self.limit_bytes = 0
        self.sized: list[Sized] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Tell the trial where its step is."""
        assert self._trials is not None
        self._trials.note_activations()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search from the shortest bin on.

        Raises:
            ValueError: of a bin not even one dialogue fits.
        """
        memory = self._make_memory(trainer.strategy.root_device)
        memory.limit_bytes = smallest_of_ranks(memory.limit_bytes, trainer)
        self.limit_bytes = memory.limit_bytes
        self._trials = Trials(trainer, memory, self.make_batch)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["lr"] * 0.0  # steps on noise mustn't lead the weights to NaN
        # What the optimizer keeps, and what libraries take once, is to count at every size.
        Trials(trainer, memory, self.make_batch).of(self.bins[0], 1)
        ranks, guess = data_parallel_place(trainer).num_ranks, 1
        for place, longest in enumerate(self.bins):
            self.sized.append(self._largest(longest, guess, ranks))
            if place + 1 < len(self.bins):
                guess = int(self.sized[-1].batch_size * longest.duration_s / self.bins[place + 1].duration_s)
        trainer.should_stop = True

    def _largest(self, longest: Bin, guess: int, ranks: int) -> Sized:
        trials = self._trials
        assert trials is not None
        size = largest_that_fits(
            lambda size: trials.of(longest, size).fits, start=trials.first_size(guess), most=self._most
        )
        if not size:
            raise ValueError(
                f"not even one dialogue of {longest.duration_s:g} s fits into {self.limit_bytes / GIB:.1f} GiB: set"
                f" data.train_ds.max_duration below that, parallel.activation_checkpointing=full,"
                " trainer.precision=bf16-true, or more devices under s2s_parallel.strategy.MeshStrategy"
            )
        sized = Sized(longest, size, trials.of(longest, size), size * longest.duration_s * ranks)
        say(f"{longest.duration_s:g} s: {size} dialogues, {sized.trial.peak_bytes / GIB:.2f} GiB")
        return sized


def bins_of(data: DataConfig, args: CalibrateArgs, tokenizer: Any) -> tuple[list[Bin], str]:
    """Return the bins and where they come from: the arguments, the config, or the data.

    Raises:
        ValueError: there is no data, and no bins are given.
    """
    if args.bins_s is not None:
        return [Bin(duration_s) for duration_s in args.bins_s], "--bins"
    configured = configured_bins(data.train_ds)
    if configured is not None and args.num_buckets is None:
        return configured, "data.train_ds.bucket_duration_bins"
    if not has_source(data.train_ds):
        raise ValueError("data.train_ds names no data to estimate bins from: give --bins SECONDS,SECONDS,...")
    return estimate_bins(data, tokenizer, args.num_buckets or DEFAULT_BUCKETS)


def check_args(args: CalibrateArgs) -> None:
    """Refuse what means nothing.

    Raises:
        ValueError: with the flag and what would work.
    """
    if args.bins_s is not None and args.num_buckets is not None:
        raise ValueError("--bins and --buckets: give one of them")
    if args.bins_s is not None and (min(args.bins_s) <= 0 or list(args.bins_s) != sorted(set(args.bins_s))):
        raise ValueError(f"--bins is {','.join(map(str, args.bins_s))}: give ascending numbers of seconds above 0")
    if args.num_buckets is not None and args.num_buckets < 1:
        raise ValueError(f"--buckets is {args.num_buckets}: give 1 or more")
    if not 0 < args.memory_share <= 1:
        raise ValueError(f"--memory-share is {args.memory_share:g}: give a share above 0, up to 1")
    if args.memory_gib is not None and args.memory_gib <= 0:
        raise ValueError(f"--memory-gib is {args.memory_gib:g}: give a number above 0")
    if args.max_batch_size < 1:
        raise ValueError(f"--max-batch-size is {args.max_batch_size}: give 1 or more")


def _stored(data: DataConfig, args: CalibrateArgs) -> Stored:
    if args.stored is not None:
        return STORED[args.stored]
    if not has_source(data.train_ds):
        raise ValueError("data.train_ds names no data, so say what it will have of the agent: --stored codes or audio")
    return stored_in(data)


def _only_training(cfg: AppConfig) -> Any:
    """The trainer without all that isn't a step. Two batches of accumulated gradients show what more of them take."""
    return replace(
        cfg.trainer,
        accumulate_grad_batches=min(cfg.trainer.accumulate_grad_batches, 2),
        max_steps=1,
        min_steps=None,
        max_epochs=None,
        min_epochs=None,
        max_time=None,
        limit_train_batches=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        fast_dev_run=False,
        overfit_batches=0.0,
        val_check_interval=None,
        callbacks=None,
        profiler=None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _notes(cfg: AppConfig, stored: Stored, bins: Sequence[Bin]) -> list[str]:
    kept = " and ".join(name for name, there in (("audio", stored.audio), ("codes", stored.codes)) if there)
    notes = [f"batches held the agent's {kept}; a longer dialogue than {bins[-1].duration_s:g} s is left out"]
    frame_length_s = cfg.data.frame_length
    longest_s = lengthened(bins[-1].duration_s, cfg.data.train_ds.augment, frame_length_s)
    if longest_s > bins[-1].duration_s:
        notes.append(f"augmentation makes {bins[-1].duration_s:g} s up to {longest_s:.2f} s: batches lasted so long")
    return notes


def save_path(cfg_path: Path, out: Path | None) -> Path:
    """Return where the config goes: `out`, or beside CFG with .calibrated.yaml in place of .yaml."""
    return out or cfg_path.with_name(f"{cfg_path.stem}.calibrated.yaml")
