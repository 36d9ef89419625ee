"""Which part of the data belongs to which data-parallel rank and worker.

A data source is split into as many shares as there are streams (ranks x workers). The split doesn't depend on
any seed, so ranks share no dialogue whatever the seed mode and the number of workers.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Share ``index`` of ``count``."""

    index: int
    count: int

    @classmethod
    def of(cls, dp_rank: int, dp_world_size: int, worker: int, num_workers: int) -> "Share":
        """Return the share of a worker (0 of 1 where the main process loads) on a data-parallel rank."""
        assert 0 <= dp_rank < dp_world_size
        assert 0 <= worker < num_workers
        return cls(dp_rank * num_workers + worker, dp_world_size * num_workers)

    def whole_shards(self, num_shards: int) -> range:
        """Return the shards that are this share's alone: as many for each share as go evenly."""
        num_even = num_shards - num_shards % self.count
        return range(self.index, num_even, self.count)

    def num_left(self, num_shards: int) -> int:
        """Return how many shards :meth:`whole_shards` leaves over, at the end."""
        return num_shards % self.count


@dataclass(frozen=True)
class Split:
    """The shards left over by :meth:`Share.whole_shards`, each of which several shares have a part of.

    They are laid end to end, each as long as its weight, and cut into equal pieces, one for each share. So a
    share reads few of them, and pieces have like numbers of cuts if the weights are the numbers of cuts.
    """

    weights: tuple[int, ...]

    def touches(self, share: Share, shard: int) -> bool:
        """Tell whether ``share`` has a part of leftover shard number ``shard``."""
        start, total = sum(self.weights[:shard]), sum(self.weights)
        end = start + self.weights[shard]
        if total == 0:  # empty shards
            return False
        return start * share.count // total <= share.index <= (end * share.count - 1) // total

    def has(self, share: Share, shard: int, cut: int, num_cuts: int) -> bool:
        """Tell whether cut number ``cut`` of the ``num_cuts`` in a leftover shard is ``share``'s."""
        start, total = sum(self.weights[:shard]), sum(self.weights)
        place = start * num_cuts + self.weights[shard] * cut  # in units of 1 / num_cuts
        return place * share.count // (total * num_cuts) == share.index


WHOLE = Share(0, 1)


def derive_seed(*parts: int | str) -> int:
    """Return a seed that differs wherever a part differs; the same in every process and Python."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
