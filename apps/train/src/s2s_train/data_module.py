"""s2s_data's loaders for Lightning: one endless stream of training batches, resumed where training stopped."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader

from s2s_data.config import DataConfig
from s2s_data.loader import train_dataloader, validation_dataloaders

log = logging.getLogger(__name__)


class ResumableLoader:
    """Training batches that go on over Lightning's epochs and over restarts, none twice and none left out.

    A batch counts as delivered when training starts on it, not when it is fetched: Lightning fetches one ahead
    where it can't tell the epoch's end, and throws it away at an epoch's start; such a batch is handed out again.
    Lightning saves this loader's state within the checkpoint, since it has `state_dict`.

    Args:
        build: makes the batches that follow the first `skip_batches`.
        num_streams: processes times workers; another number deals the same batches out differently.
    """

    def __init__(self, build: Callable[[int], Iterable[Any]], num_streams: int = 1) -> None:
        self._build = build
        self._num_streams = num_streams
        self._batches: Iterator[Any] | None = None
        self._fetched: deque[Any] = deque()
        self.batches_delivered = 0

    def __iter__(self) -> Iterator[Any]:
        if self._batches is None:
            self._batches = iter(self._build(self.batches_delivered))
        yield from tuple(self._fetched)
        for batch in self._batches:
            self._fetched.append(batch)
            yield batch

    def mark_delivered(self) -> None:
        """Count the oldest fetched batch: training starts on it."""
        self._fetched.popleft()
        self.batches_delivered += 1

    def close(self) -> None:
        """Let go of the batches, and so end their workers."""
        self._batches = None
        self._fetched.clear()

    def state_dict(self) -> dict[str, int]:
        """Number of batches that training has had."""
        return {"batches_delivered": self.batches_delivered, "num_streams": self._num_streams}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on behind the batches that training has had. Comes before the first `iter()`."""
        assert self._batches is None, "state is loaded before iteration"
        self.batches_delivered = state_dict["batches_delivered"]
        if (before := state_dict.get("num_streams", self._num_streams)) != self._num_streams:
            log.warning(
                "the run was trained with %d data streams (processes x workers) and goes on with %d: some dialogues of"
                " this pass will come twice or not at all. Keep trainer.devices and data.train_ds.num_workers for an"
                " exact resume.",
                before,
                self._num_streams,
            )


class DuplexDataModule(LightningDataModule):
    """The loaders of one `data` config, for the rank that asks.

    The model tells what the data depends on: `tokenizer`, `codec_fingerprint`.
    """

    def __init__(self, cfg: DataConfig) -> None:
        super().__init__()
        self._cfg = cfg
        self._train: ResumableLoader | None = None

    def train_dataloader(self) -> ResumableLoader:
        """Return this data parallel rank's endless training batches."""
        place = self._of_this_rank()
        self._train = ResumableLoader(
            lambda skip: train_dataloader(self._cfg, **place, skip_batches=skip),
            num_streams=place["dp_world_size"] * max(1, self._cfg.train_ds.num_workers),
        )
        return self._train

    def val_dataloader(self) -> CombinedLoader | list[Any]:
        """Return all validation sets at once: a batch is {name: batch of that set, or None at its end}."""
        loaders = validation_dataloaders(self._cfg, **self._of_this_rank())
        return CombinedLoader(loaders, mode="max_size") if loaders else []

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook between fetching a batch and the step on it."""
        assert self.trainer is not None
        if self.trainer.training and self._train is not None:
            self._train.mark_delivered()
        return batch

    def teardown(self, stage: str) -> None:
        """End the workers now: left to Python's garbage collector, each holds the process up for 5 s."""
        if self._train is not None:
            self._train.close()

    def _of_this_rank(self) -> dict[str, Any]:
        """Tensor parallel peers share a data parallel rank; Lightning's strategy knows which is which."""
        trainer = self.trainer
        assert trainer is not None
        place = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        model = trainer.lightning_module
        return {
            "tokenizer": model.tokenizer,
            "codec_fingerprint": model.codec_fingerprint,
            "dp_rank": place["rank"],
            "dp_world_size": place["num_replicas"],
        }
