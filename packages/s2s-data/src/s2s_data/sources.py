"""A leaf of a blend: a Shar or a cut manifest, in whole or a share of it.

A source is read shard by shard. Iterating leaves no state behind: the same call, the same cuts.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import PurePath
from typing import Any, NamedTuple, Protocol

from lhotse import CutSet
from lhotse.cut import Cut

from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.shar import CUTS, TARGET_AUDIO, TARGET_CODES, Shard
from s2s_data.share import WHOLE, Share, Split

# Changes a cut, or drops it (None). It is called with the cut's metadata when batches are planned and with the
# data attached when they are loaded: it changes fields, and never loads audio.
Converter = Callable[[Cut], Cut | None]


class CutRef(NamedTuple):
    """A cut of which only the metadata has been read."""

    cut: Cut
    load: Callable[[], Cut]  # the cut with its data; raises UnreadableCutError


class Source(Protocol):
    """What a blend needs of a source."""

    @property
    def where(self) -> str:
        """The config key and the path, for messages."""

    @property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes."""

    @property
    def can_seek(self) -> bool:
        """Whether going on in the middle of a shard is cheap."""

    @property
    def identity(self) -> tuple[str, ...]:
        """What the order of the data hangs on: the names of its files, wherever they lie."""

    def num_cuts(self, at_least: int | None = None) -> int:
        """Count the cuts, or so many shards that there are ``at_least`` as many; reads manifests only."""

    def order(self, share: Share, seed: int | None) -> list[int]:
        """Return the shards of which the share has a part; ``seed`` shuffles them, None keeps their order."""

    def refs(
        self, share: Share, shard: int, start: int = 0, *, with_target_audio: bool
    ) -> Iterator[tuple[int, CutRef]]:
        """Yield the share's cuts of one shard from cut number ``start`` on, with their numbers in the shard."""

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once, without their audio."""


def once(source: Source, *, with_target_audio: bool) -> Iterator[CutRef]:
    """Yield every cut of a source once, in stored order."""
    for shard in source.order(WHOLE, None):
        for _, ref in source.refs(WHOLE, shard, with_target_audio=with_target_audio):
            yield ref


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
    convert: tuple[Converter, ...] = ()
    _counts: dict[int, int] = field(default_factory=dict, repr=False)  # cuts of the shards that were counted

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shards)

    @property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes."""
        return TARGET_CODES in self.shards[0].paths

    @cached_property
    def can_seek(self) -> bool:
        """Whether going on in the middle of a shard is cheap."""
        return self.shards[0].is_seekable

    @property
    def identity(self) -> tuple[str, ...]:
        """What the order of the data hangs on: the names of its files, wherever they lie."""
        return tuple(PurePath(shard.paths[CUTS]).name for shard in self.shards)

    def check(self) -> None:
        """Raise :class:`DataError` if the agent's channel is missing as a whole."""
        fields = self.shards[0].paths
        if TARGET_AUDIO not in fields and TARGET_CODES not in fields:
            raise DataError(
                f"{self.where}: the Shar has the fields {', '.join(fields)} but neither {TARGET_AUDIO} nor "
                f"{TARGET_CODES}: the agent's audio is missing"
            )

    def num_cuts(self, at_least: int | None = None) -> int:
        """Count the cuts, or so many shards that there are ``at_least`` as many; reads manifests only."""
        total = 0
        for index in range(self.num_shards):
            if at_least is not None and total >= at_least:
                break
            total += self._num_cuts_of(index)
        return total

    def order(self, share: Share, seed: int | None) -> list[int]:
        """Return the shards of which the share has a part; ``seed`` shuffles them, None keeps their order."""
        split = self._split(share)
        first_split = self.num_shards - len(split.weights)
        parts = [first_split + shard for shard in range(len(split.weights)) if split.touches(share, shard)]
        order = [*share.whole_shards(self.num_shards), *parts]
        if seed is not None:
            random.Random(seed).shuffle(order)
        return order

    def refs(
        self, share: Share, shard: int, start: int = 0, *, with_target_audio: bool
    ) -> Iterator[tuple[int, CutRef]]:
        """Yield the share's cuts of one shard from cut number ``start`` on, with their numbers in the shard."""
        skipped = [] if with_target_audio or not self.has_codes else [TARGET_AUDIO]
        stored = self.shards[shard]
        is_seekable, is_ours = stored.is_seekable, self._test(share, shard)
        # What can't be sought is read from front to back, each cut's data in memory until its batch is made.
        rows = stored.rows(start) if is_seekable else islice(enumerate(stored.cuts(skipped)), start, None)
        for number, cut in rows:
            if is_ours(number):
                load = _loader(stored, cut, number, skipped) if is_seekable else partial(_same, cut)
                if (ref := _ref(cut, load, self.tags, self.convert)) is not None:
                    yield number, ref

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once, without their audio."""
        for shard in self.order(share, None):
            is_ours = self._test(share, shard)
            for number, cut in self.shards[shard].rows():
                if is_ours(number) and (ref := _ref(cut, partial(_same, cut), self.tags, self.convert)) is not None:
                    yield ref.cut

    def _test(self, share: Share, shard: int) -> Callable[[int], bool]:
        """Return what tells whether a cut of the shard, by its number, is the share's."""
        split = self._split(share)
        left = shard - (self.num_shards - len(split.weights))
        if left < 0:
            return lambda number: True
        num_cuts = self._num_cuts_of(shard)
        return lambda number: split.has(share, left, number, num_cuts)

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
    convert: tuple[Converter, ...] = ()

    @property
    def num_shards(self) -> int:
        """A manifest is one shard."""
        return 1

    @property
    def can_seek(self) -> bool:
        """A manifest is read from its start up to the place."""
        return False

    @property
    def identity(self) -> tuple[str, ...]:
        """What the order of the data hangs on: the manifest's name, wherever it lies."""
        return (PurePath(self.path).name,)

    @cached_property
    def has_codes(self) -> bool:
        """Whether the agent's audio is stored as codes, judged by the first cut."""
        return any(cut.has_custom(TARGET_CODES) for cut in self._first())

    def check(self) -> None:
        """Raise :class:`DataError` if the manifest can't be read or is empty."""
        if not self._first():
            raise DataError(f"{self.where}: the cut manifest {self.path} is empty")

    def num_cuts(self, at_least: int | None = None) -> int:
        """Count the cuts, up to ``at_least``."""
        return sum(1 for _ in islice(self._cuts(), at_least))

    def order(self, share: Share, seed: int | None) -> list[int]:
        """Return the one shard there is."""
        del share, seed
        return [0]

    def refs(
        self, share: Share, shard: int, start: int = 0, *, with_target_audio: bool
    ) -> Iterator[tuple[int, CutRef]]:
        """Yield the share's cuts from cut number ``start`` on; their audio is read when it is loaded."""
        del with_target_audio
        assert shard == 0
        for number, cut in enumerate(self._cuts()):
            if number < start or number % share.count != share.index:
                continue
            if (ref := _ref(cut, partial(_same, cut), self.tags, self.convert)) is not None:
                yield number, ref

    def metadata(self, share: Share = WHOLE) -> Iterator[Cut]:
        """Yield the cuts of a share once."""
        return (ref.cut for _, ref in self.refs(share, 0, with_target_audio=False))

    def _cuts(self) -> Iterator[Cut]:
        try:
            yield from CutSet.from_file(self.path)  # as text: a Path would make one slash of a URL's two
        except (OSError, EOFError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError(f"{self.where}: can't read the cut manifest {self.path}: {error}") from error

    def _first(self) -> list[Cut]:
        return list(islice(self.metadata(), 1))


def _loader(shard: Shard, cut: Cut, number: int, skip_fields: Sequence[str]) -> Callable[[], Cut]:
    """Look up where a cut's data lies now, while its shard is read, so that loading needs no index."""
    try:
        return partial(shard.attach, cut, shard.find(cut.id, number, skip_fields))
    except UnreadableCutError as error:
        return partial(_fail, error)


def _same(cut: Cut) -> Cut:
    return cut


def _fail(error: UnreadableCutError) -> Cut:
    raise error


def _ref(cut: Cut, load: Callable[[], Cut], tags: Mapping[str, Any], convert: tuple[Converter, ...]) -> CutRef | None:
    try:
        planned = _convert(cut, tags, convert)
    except UnreadableCutError as error:
        return CutRef(cut, partial(_fail, error))
    if planned is None:
        return None

    def loaded() -> Cut:
        found = _convert(load(), tags, convert)
        assert found is not None, "a converter drops a cut in planning, or never"
        return found

    return CutRef(planned, loaded)


def _convert(cut: Cut, tags: Mapping[str, Any], convert: tuple[Converter, ...]) -> Cut | None:
    for key, value in tags.items():
        setattr(cut, key, value)
    converted: Cut | None = cut
    for function in convert:
        converted = function(converted) if converted is not None else None
    return converted
