"""A leaf of a blend: a Shar or a cut manifest, read once or forever, in whole or a share of it."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

from lhotse import CutSet
from lhotse.cut import Cut

from s2s_data.errors import DataError
from s2s_data.shar import TARGET_AUDIO, TARGET_CODES, Shard
from s2s_data.share import WHOLE, Share, Split


class Source(Protocol):
    """What a blend needs of a source. Iterating leaves no state behind: the same call, the same cuts."""

    @property
    def where(self) -> str:
        """The config key and the path, for messages."""

    @property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes."""

    def num_cuts(self) -> int:
        """Count the cuts; reads manifests only."""

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once, without their audio."""

    def once(self, share: Share = WHOLE, *, seed: int | None = None, with_target_audio: bool) -> Iterator[Cut]:
        """Yield the cuts of a share once; ``seed`` orders the shards, None keeps their order."""


def forever(
    source: Source, share: Share, *, seed: int | None, with_target_audio: bool, keep: Callable[[Cut], bool]
) -> Iterator[Cut]:
    """Yield the cuts of a share that ``keep`` takes again and again, the shards in another order each time.

    Raises :class:`DataError` if there are none.
    """
    for epoch in count():
        epoch_seed = None if seed is None else seed + epoch
        empty = True
        for cut in filter(keep, source.once(share, seed=epoch_seed, with_target_audio=with_target_audio)):
            empty = False
            yield cut
        if empty:
            raise nothing_left(source, share)


def nothing_left(source: Source, share: Share) -> DataError:
    """Return the error for a source that has nothing to train on for a share."""
    return DataError(
        f"{source.where} has {source.num_cuts()} dialogues, none of them for stream {share.index} of "
        f"{share.count}: each worker of each data-parallel rank has dialogues of its own. Set a smaller "
        "num_workers, check min_duration and max_duration, or take the source out"
    )


@dataclass(frozen=True)
class SharSource:
    """A lhotse Shar."""

    where: str
    shards: list[Shard]
    tags: Mapping[str, Any] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict, repr=False)  # cuts of the shards that were counted

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shards)

    @property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes."""
        return TARGET_CODES in self.shards[0].paths

    def check(self) -> None:
        """Raise :class:`DataError` if the agent's channel is missing as a whole."""
        fields = self.shards[0].paths
        if TARGET_AUDIO not in fields and TARGET_CODES not in fields:
            raise DataError(
                f"{self.where}: the Shar has the fields {', '.join(fields)} but neither {TARGET_AUDIO} nor "
                f"{TARGET_CODES}: the agent's audio is missing"
            )

    def num_cuts(self) -> int:
        """Count the cuts; reads manifests only."""
        return sum(self._num_cuts_of(index) for index in range(self.num_shards))

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once, without their audio."""
        return self._read(share, None, lambda shard: shard.cuts(metadata_only=True))

    def once(self, share: Share = WHOLE, *, seed: int | None = None, with_target_audio: bool) -> Iterator[Cut]:
        """Yield the cuts of a share once; ``seed`` orders the shards, None keeps their order."""
        skipped = [] if with_target_audio or not self.has_codes else [TARGET_AUDIO]
        return self._read(share, seed, lambda shard: shard.cuts(skipped))

    def _read(self, share: Share, seed: int | None, read: Callable[[Shard], Iterator[Cut]]) -> Iterator[Cut]:
        whole = share.whole_shards(self.num_shards)
        split = self._split(share)
        first_split = self.num_shards - len(split.weights)
        parts = [first_split + shard for shard in range(len(split.weights)) if split.touches(share, shard)]
        order = [*whole, *parts]
        if seed is not None:
            random.Random(seed).shuffle(order)
        for index in order:
            cuts = read(self.shards[index])
            if index >= first_split:
                num_cuts = self._num_cuts_of(index)
                cuts = (cut for i, cut in enumerate(cuts) if split.has(share, index - first_split, i, num_cuts))
            yield from (_attach(cut, self.tags) for cut in cuts)

    def _split(self, share: Share) -> Split:
        """Weigh shards by their cuts where a share has nothing else; else counting isn't worth its time."""
        left = range(self.num_shards - share.num_left(self.num_shards), self.num_shards)
        exact = self.num_shards < share.count
        return Split(tuple(self._num_cuts_of(index) if exact else 1 for index in left))

    def _num_cuts_of(self, index: int) -> int:
        if index not in self._counts:
            self._counts[index] = self.shards[index].num_cuts()
        return self._counts[index]


@dataclass(frozen=True)
class ManifestSource:
    """A cut manifest (``cuts.jsonl.gz``) whose audio lies in files of its own."""

    where: str
    path: str
    tags: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """A manifest is one shard."""
        return 1

    @property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes, judged by the first cut."""
        return any(cut.has_custom(TARGET_CODES) for cut in self._first())

    def check(self) -> None:
        """Raise :class:`DataError` if the manifest can't be read or is empty."""
        if not self._first():
            raise DataError(f"{self.where}: the cut manifest {Path(self.path).absolute()} is empty")

    def num_cuts(self) -> int:
        """Count the cuts."""
        return sum(1 for _ in self.metadata())

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once."""
        path = Path(self.path)
        try:
            for number, cut in enumerate(CutSet.from_file(path)):
                if number % share.count == share.index:
                    yield _attach(cut, self.tags)
        except (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError(f"{self.where}: can't read the cut manifest {path.absolute()}: {error}") from error

    def once(self, share: Share = WHOLE, *, seed: int | None = None, with_target_audio: bool) -> Iterator[Cut]:
        """Yield the cuts of a share once, in their order; audio is read when it is loaded."""
        del seed, with_target_audio
        return self.metadata(share)

    def _first(self) -> list[Cut]:
        return list(islice(self.metadata(), 1))


def _attach(cut: Cut, tags: Mapping[str, Any]) -> Cut:
    for key, value in tags.items():
        setattr(cut, key, value)
    return cut
