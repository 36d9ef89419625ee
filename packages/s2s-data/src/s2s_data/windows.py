"""Windows: the dialogues from which batches are made at a time.

A stream of training data is cut into windows of N dialogues. From t draws on, a source of weight p gives
floor((t + N) p + phase) - floor(t p + phase) of them: exactly its share, and a window is a function of t and of
one cursor a source. So a run resumes at a window without reading what came before it.
"""

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple

from lhotse.cut import Cut

from s2s_data.blend import Blend
from s2s_data.errors import DataError
from s2s_data.share import Share, derive_seed
from s2s_data.sources import CutRef, Source, nothing_left

# Manifests that are open at a time; the others are opened again at their next turn.
MAX_OPEN_STREAMS = 256

logger = logging.getLogger(__name__)

# Says why a cut is left out ("longer than max_duration"); None takes it.
Filter = Callable[[Cut], str | None]
Lost = Callable[[DataError, int], None]


class Cursor(NamedTuple):
    """How far a source has been read."""

    epoch: int = 0  # finished passes
    shard: int = 0  # place in this pass's order of shards
    cut: int = 0  # number of the next cut in that shard


class LeftOut:
    """Counts what a filter leaves out of a source, by reason, and says so at 1, 10, 100, … of them."""

    def __init__(self, where: str, reject: Filter, *, says: bool) -> None:
        self.where = where
        self.reject = reject
        self.says = says
        self.num_read = 0
        self.reasons: Counter[str] = Counter()

    def takes(self, cut: Cut) -> bool:
        """Tell whether a cut is taken, and count it."""
        self.num_read += 1
        reason = self.reject(cut)
        if reason is None:
            return True
        self.reasons[reason] += 1
        num = self.reasons.total()
        if self.says and 10 ** (len(str(num)) - 1) == num:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
            logger.warning("%s: %d of %d dialogues left out so far: %s", self.where, num, self.num_read, reasons)
        return False


class SourceStream:
    """A source's share, read again and again, the shards in another order in each pass.

    Parameters
    ----------
    source, share
        What is read.
    seed
        Orders the shards; None keeps their order.
    reject
        Leaves cuts out; stream 0 logs how many of its own, by reason.
    lost
        Is told of a shard that can't be read on, and how many cuts it may have had: it raises if that is too much.
    with_target_audio
        Whether the agent's audio is read where its codes are stored.
    cursor
        Where to go on.

    """

    def __init__(
        self,
        source: Source,
        share: Share,
        *,
        seed: int | None,
        reject: Filter,
        lost: Lost,
        with_target_audio: bool,
        cursor: Cursor = Cursor(),  # noqa: B008  a tuple
    ) -> None:
        self.source = source
        self.share = share
        self.seed = seed
        self.lost = lost
        self.with_target_audio = with_target_audio
        self.cursor = cursor
        self._left_out = LeftOut(source.where, reject, says=share.index == 0)
        self._refs: Iterator[CutRef] | None = None
        self._most_in_a_shard = 1

    def take(self, num_cuts: int) -> list[CutRef]:
        """Read on. Raises :class:`DataError` if the share has nothing."""
        if self._refs is None:
            self._refs = self._read_on()
        return [next(self._refs) for _ in range(num_cuts)]

    def close(self) -> None:
        """Close the manifest, and read up to the cursor again at the next :meth:`take`; not where that fetches data."""
        if self.source.can_seek:
            self._refs = None

    def _read_on(self) -> Iterator[CutRef]:
        for epoch in count(self.cursor.epoch):
            found = self.cursor.shard > 0 or self.cursor.cut > 0
            order = self.source.order(self.share, None if self.seed is None else self.seed + epoch)
            for place in range(self.cursor.shard, len(order)):
                for number, ref in self._refs_of(order[place]):
                    self.cursor = Cursor(epoch, place, number + 1)
                    if self._left_out.takes(ref.cut):
                        found = True
                        yield ref
                self.cursor = Cursor(epoch, place + 1, 0)
            self.cursor = Cursor(epoch + 1, 0, 0)
            if not found:
                raise nothing_left(self.source, self.share)

    def _refs_of(self, shard: int) -> Iterator[tuple[int, CutRef]]:
        """Read a shard; what is left of one that turns out broken is skipped."""
        refs = self.source.refs(self.share, shard, self.cursor.cut, with_target_audio=self.with_target_audio)
        try:
            for number, ref in refs:
                self._most_in_a_shard = max(self._most_in_a_shard, number + 1)
                yield number, ref
        except DataError as error:
            self.lost(error, max(1, self._most_in_a_shard - self.cursor.cut))


class WindowPosition(NamedTuple):
    """Where a window starts; with it, it can be read again."""

    num_drawn: int
    cursors: tuple[Cursor, ...]  # one a source


class WindowReader:
    """Reads a share of a blend window by window, without end.

    ``streams`` are the blend's sources in its order; ``size`` is the number of dialogues in a window.
    """

    def __init__(self, blend: Blend, streams: list[SourceStream], *, size: int, seed: int, num_drawn: int = 0) -> None:
        assert size > 0
        self._streams = streams
        self._weights = [leaf.weight for leaf in blend.leaves]
        self._phases = [derive_seed("phase", seed, number) / 2**32 for number in range(len(streams))]
        self._max_open = blend.max_open_streams or MAX_OPEN_STREAMS
        self._open: OrderedDict[int, None] = OrderedDict()
        self._size = size
        self._num_drawn = num_drawn

    def next(self) -> tuple[WindowPosition, list[CutRef]]:
        """Return the next window and where it starts."""
        while True:
            position = WindowPosition(self._num_drawn, tuple(stream.cursor for stream in self._streams))
            self._num_drawn += self._size
            refs = []
            for number, stream in enumerate(self._streams):
                if num_cuts := self._num_due(number, self._num_drawn) - self._num_due(number, position.num_drawn):
                    refs += stream.take(num_cuts)
                    self._was_opened(number)
            if refs:
                return position, refs

    def _num_due(self, number: int, num_drawn: int) -> int:
        return math.floor(num_drawn * self._weights[number] + self._phases[number])

    def _was_opened(self, number: int) -> None:
        self._open[number] = None
        self._open.move_to_end(number)
        if len(self._open) > self._max_open:
            oldest, _ = self._open.popitem(last=False)
            self._streams[oldest].close()
