"""Splitting sources among ranks and workers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from s2s_data.share import Share, Split, derive_seed


def owners(num_shards: int, cuts_per_shard: list[int], count: int, *, exact: bool) -> dict[tuple[int, int], list[int]]:
    """Tell for each (shard, cut) which shares have it."""
    first_split = num_shards - num_shards % count
    split = Split(tuple(n if exact else 1 for n in cuts_per_shard[first_split:]))
    found: dict[tuple[int, int], list[int]] = {(s, c): [] for s, n in enumerate(cuts_per_shard) for c in range(n)}
    for index in range(count):
        share = Share(index, count)
        for shard in share.whole_shards(num_shards):
            for cut in range(cuts_per_shard[shard]):
                found[shard, cut].append(index)
        for left, num_cuts in enumerate(cuts_per_shard[first_split:]):
            mine = [cut for cut in range(num_cuts) if split.has(share, left, cut, num_cuts)]
            assert split.touches(share, left) or not mine, "a share would skip a shard that has a cut of it"
            for cut in mine:
                found[first_split + left, cut].append(index)
    return found


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 20), st.booleans())
def test_every_cut_has_one_owner(cuts_per_shard: list[int], count: int, exact: bool) -> None:
    found = owners(len(cuts_per_shard), cuts_per_shard, count, exact=exact)
    assert all(len(shares) == 1 for shares in found.values())


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 20))
def test_fewer_shards_than_shares_are_split_evenly(cuts_per_shard: list[int], count: int) -> None:
    if len(cuts_per_shard) >= count:
        return
    shares = [share for (share,) in owners(len(cuts_per_shard), cuts_per_shard, count, exact=True).values()]
    sizes = [shares.count(index) for index in range(count)]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(1, 50), st.integers(1, 20))
def test_like_shards_are_dealt_evenly(num_shards: int, count: int) -> None:
    shares = [share for (share,) in owners(num_shards, [20] * num_shards, count, exact=False).values()]
    sizes = [shares.count(index) for index in range(count)]
    assert max(sizes) - min(sizes) <= 2


@given(st.integers(1, 19), st.integers(2, 20))
def test_shares_open_no_shard_that_has_nothing_for_them(num_left: int, count: int) -> None:
    split = Split((20,) * num_left)
    opened = sum(split.touches(Share(index, count), shard) for index in range(count) for shard in range(num_left))
    assert opened == num_left + count - math.gcd(num_left, count)


def test_shares_of_ranks_and_workers_differ() -> None:
    shares = {Share.of(rank, 3, worker, 2) for rank in range(3) for worker in range(2)}
    assert shares == {Share(index, 6) for index in range(6)}


def test_seeds_differ_and_last() -> None:
    assert len({derive_seed("a", number) for number in range(100)} | {derive_seed("b", 0)}) == 101
    # A run that resumes is another process, maybe of a newer Python: the value must stay what it is.
    assert derive_seed("cuts", 42, 0, 1) == 3_351_247_469
