"""s2s_data's loaders for Lightning: one endless stream of training batches, resumed where training stopped."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from s2s_data.batch import first_text_only
from s2s_data.config import DataConfig
from s2s_data.loader import train_dataloader, validation_dataloaders
from s2s_data.position import StreamPosition
from s2s_eval.gather import gather_lists


class DataParallelPlace(NamedTuple):
    """Which data a process has: that of `rank`, of `num_ranks`."""

    rank: int
    num_ranks: int


def data_parallel_place(trainer: Trainer) -> DataParallelPlace:
    """Tensor parallel peers share a place; Lightning's strategy knows which is which."""
    place = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
    return DataParallelPlace(place["rank"], place["num_replicas"])


class Resumable(Protocol):
    """What `s2s_data.TrainLoader` is to us."""

    position: StreamPosition  # behind the last batch that was handed out

    def __iter__(self) -> Iterator[Any]:
        """Go on from the position."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the position."""


class ResumableLoader:
    """Training batches that go on over Lightning's epochs and over restarts, none twice and none left out.

    A batch counts as delivered when training starts on it, not when it is fetched: Lightning fetches one ahead
    where it can't tell the epoch's end, and throws it away at an epoch's start; such a batch is handed out again.
    Lightning saves this loader's state within the checkpoint, since it has `state_dict`; every rank calls it then.

    Args:
        loader: makes the batches, and tells and takes a position.
        dp_rank: this process' data parallel rank.
    """

    def __init__(self, loader: Resumable, dp_rank: int = 0) -> None:
        self._loader = loader
        self._dp_rank = dp_rank
        self._batches: Iterator[Any] | None = None
        self._fetched: deque[tuple[Any, StreamPosition]] = deque()  # batches, and the positions behind them
        self._position = loader.position
        self.waited_s = 0.0  # for batches, over all iterations

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = iter(self._loader)
        yield from [batch for batch, _ in self._fetched]
        while True:
            before = time.monotonic()
            batch = next(self._batches, None)
            self.waited_s += time.monotonic() - before
            if batch is None:
                return
            self._fetched.append((batch, self._loader.position))
            yield batch

    def mark_delivered(self) -> None:
        """Let go of the oldest fetched batch: training starts on it."""
        _, self._position = self._fetched.popleft()

    def close(self) -> None:
        """End the batches' workers."""
        if isinstance(self._batches, Generator):
            self._batches.close()
        self._batches = None
        self._fetched.clear()

    def state_dict(self) -> dict[int, dict[str, Any]]:
        """Return the position of each data parallel rank behind the batches that training has had."""
        return dict(chain.from_iterable(gather_lists([(self._dp_rank, self._position.as_dict())])))

    def load_state_dict(self, state_dict: dict[int, dict[str, Any]]) -> None:
        """Go on behind the batches that training has had. Comes before the first `iter()`."""
        assert self._batches is None, "state is loaded before iteration"
        # A rank that wasn't there takes another one's position: the loader sees that it isn't its own, and says so.
        self._loader.load_state_dict(state_dict.get(self._dp_rank, state_dict[0]))
        self._position = self._loader.position


class DuplexDataModule(LightningDataModule):
    """The loaders of one `data` config, for the rank that asks.

    The model tells what the data depends on: `tokenizer`, `codec_fingerprint`.
    """

    def __init__(self, cfg: DataConfig, validated: str = "validation_ds") -> None:
        """`validated` is the section of `cfg` whose sets are validated on."""
        super().__init__()
        self._cfg = cfg
        self._validated = validated
        self._train: ResumableLoader | None = None

    def train_dataloader(self) -> ResumableLoader:
        """Return this data parallel rank's endless training batches."""
        place = self._of_this_rank()
        silence_codes_K = None
        if self._cfg.train_ds.augment.random_silence is not None:
            assert self.trainer is not None
            model: Any = self.trainer.lightning_module
            silence_codes_K = model.audio_codec.silence_codes().cpu().numpy()
        loader = train_dataloader(self._cfg, **place, silence_codes_K=silence_codes_K)
        self._train = ResumableLoader(loader, place["dp_rank"])
        return self._train

    @property
    def waited_s(self) -> float:
        """Seconds that training has waited for batches so far."""
        return 0.0 if self._train is None else self._train.waited_s

    def val_dataloader(self) -> CombinedLoader | list[Any]:
        """Return all validation sets at once: a batch is {name: batch of that set, or None at its end}."""
        loaders = validation_dataloaders(self._cfg, **self._of_this_rank(), section=self._validated)
        return CombinedLoader(loaders, mode="max_size") if loaders else []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook between fetching a batch and the step on it."""
        assert self.trainer is not None
        if self.trainer.training and self._train is not None:
            self._train.mark_delivered()
            _check_text_alone(batch, self.trainer.lightning_module)
        return batch

    def teardown(self, stage: str) -> None:
        """End the workers now: left to Python's garbage collector, each holds the process up for 5 s."""
        if self._train is not None:
            self._train.close()

    def _of_this_rank(self) -> dict[str, Any]:
        trainer = self.trainer
        assert trainer is not None
        model = trainer.lightning_module
        place = data_parallel_place(trainer)
        return {
            "tokenizer": model.tokenizer,
            "codec_fingerprint": model.codec_fingerprint,
            "dp_rank": place.rank,
            "dp_world_size": place.num_ranks,
        }


def _check_text_alone(batch: Any, model: Any) -> None:
    """Raise ValueError for a dialogue of text alone if the model doesn't read what the user says."""
    cut = first_text_only(batch)
    if cut is None or model.cfg.predict_user_text:
        return
    raise ValueError(
        f"cut {cut} is text alone (text_only), and without model.predict_user_text nothing tells the model what the "
        "user says: set it to true, or take such data out of data.train_ds"
    )
