"""The largest size that fits, by growing and bisection."""

from __future__ import annotations

from collections.abc import Callable

TOLERANCE = 0.02  # of the size found; a step more would be worth no more than that


def largest_that_fits(fits: Callable[[int], bool], *, start: int = 1, most: int) -> int:
    """Return the largest size up to `most` for which `fits` is true, to TOLERANCE below; 0 if 1 doesn't.

    Grows from `start` in doubling strides until a size doesn't fit, or shrinks so until one does; then bisects.
    From 1 on that is doubling: no size is tried that is more than twice one that fitted.
    """
    low, high = 0, most + 1
    size = max(1, min(start, most))
    stride = max(1, size // 8)
    while True:
        if fits(size):
            low = size
        else:
            high = size
        if high - low <= max(1, int(TOLERANCE * low)):
            return low
        if high > most:
            size = min(low + stride, most)
            stride *= 2
        elif low == 0:
            size = max(1, high - stride)
            stride *= 2
        else:
            size = (low + high) // 2
