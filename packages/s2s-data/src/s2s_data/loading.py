"""Loading the dialogues of a batch: in threads, augmented, and without those that can't be read."""

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from s2s_data.batch import DuplexBatch
from s2s_data.dataset import DuplexDataset, Rows
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.share import derive_seed
from s2s_data.sources import CutRef

# A share of unreadable dialogues is that of at least so many read.
FEWEST_JUDGED = 100
# So many standard deviations above the share are still taken for chance: each worker sees a part of the data.
CHANCE = 4
# More threads than this don't help a worker: its batches have few dialogues.
MAX_THREADS = 4

logger = logging.getLogger(__name__)

Augment = Callable[[Dialogue, int], Dialogue]  # the second argument is a seed


class UnreadableCuts:
    """Counts the dialogues that can't be loaded, names each once, and ends the run past a share of them."""

    def __init__(self, max_share: float, where: str) -> None:
        self.max_share = max_share
        self.where = where
        self.num_read = 0
        self.num_unreadable = 0
        self._named: set[str] = set()

    def add(self, cut_id: str, error: UnreadableCutError) -> None:
        """Count one. Raises :class:`DataError` if they are too many."""
        if cut_id not in self._named:
            self._named.add(cut_id)
            logger.warning("%s: skipped: %s (%d so far)", self.where, error, self.num_unreadable + 1)
        self._count(1, error)

    def add_lost(self, error: DataError, num_cuts: int) -> None:
        """Count the rest of a shard, about so many dialogues. Raises :class:`DataError` if they are too many."""
        logger.warning("%s: the rest of a shard is skipped, about %d dialogues: %s", self.where, num_cuts, error)
        self.num_read += num_cuts
        self._count(num_cuts, error)

    def _count(self, number: int, error: DataError) -> None:
        self.num_unreadable += number
        expected = self.max_share * max(self.num_read, FEWEST_JUDGED)
        if self.num_unreadable > expected + CHANCE * expected**0.5:
            raise DataError(
                f"{error}. {self.num_unreadable} of the {self.num_read} dialogues that were read so far can't be "
                f"loaded, more than {self.where}.max_unreadable_share={self.max_share:g} allows: run "
                "`s2s-data check` on the data, mend it or raise the share"
            )


class BatchLoader:
    """Loads planned dialogues into batches.

    Parameters
    ----------
    dataset
        Makes dialogues and batches.
    unreadable
        Counts what can't be loaded.
    augment
        Changes each dialogue after it is loaded.
    num_workers
        Worker processes that load beside this one: they share the cores. Decoders run outside Python's lock.

    """

    def __init__(
        self,
        dataset: DuplexDataset,
        unreadable: UnreadableCuts,
        augment: Augment | None = None,
        *,
        num_workers: int = 0,
    ) -> None:
        num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.num_threads = min(MAX_THREADS, max(1, num_cores // max(1, num_workers)))
        self.dataset = dataset
        self.unreadable = unreadable
        self.augment = augment

    def __call__(self, refs: Sequence[CutRef], seed: int) -> DuplexBatch | None:
        """Load a batch; None if none of its dialogues can be. ``seed`` is that of the augmentations."""
        # An augmentation may hand on a part of another channel's memory.
        rows = self.dataset.rows([ref.cut for ref in refs]) if self.augment is None else Rows(None, None)
        seeds = (derive_seed("augment", seed, place) for place in range(len(refs)))
        loaded = [item for item in self._load_all(refs, seeds, rows) if item is not None]
        return self.dataset.collate(loaded, rows) if loaded else None

    def _load_all(self, refs: Sequence[CutRef], seeds: Iterable[int], rows: Rows) -> list[Dialogue | None]:
        own_rows = map(rows.of, range(len(refs)))
        run = map if self.num_threads == 1 else self._threads.map
        results = list(run(self._load, refs, seeds, own_rows))
        self.unreadable.num_read += len(refs)
        for ref, result in zip(refs, results, strict=True):
            if isinstance(result, UnreadableCutError):
                self.unreadable.add(ref.cut.id, result)
        return [None if isinstance(result, UnreadableCutError) else result for result in results]

    def _load(
        self, ref: CutRef, seed: int, row: tuple[FloatArray | None, FloatArray | None]
    ) -> Dialogue | UnreadableCutError:
        try:
            dialogue = self.dataset.dialogue(ref.load(), row=row)
            return dialogue if self.augment is None else self.augment(dialogue, seed)
        except UnreadableCutError as error:  # of the dialogue, or of a file of noise
            return error

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        # made at first use, which is in the worker: forks have no threads
        return ThreadPoolExecutor(self.num_threads, thread_name_prefix="s2s-data")
