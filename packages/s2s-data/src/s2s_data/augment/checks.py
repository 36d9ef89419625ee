"""Checks of config values; errors name the key."""

import math

from s2s_data.errors import DataError


def check_within(value: float, lowest: float, highest: float, key: str) -> None:
    """Raise :class:`DataError` unless ``lowest`` <= ``value`` <= ``highest``."""
    if lowest <= value <= highest and math.isfinite(value):
        return
    if math.isinf(highest):
        bounds = "a number" if math.isinf(lowest) else f"{lowest:g} or more"
    else:
        bounds = f"from {lowest:g} to {highest:g}"
    raise DataError(f"{key} is {value}, but must be {bounds}")


def check_range(
    low: float, high: float, name: str, where: str, *, lowest: float = -math.inf, highest: float = math.inf
) -> None:
    """Check the keys ``name`` + ``_min`` and ``_max`` of ``where``, each by itself and their order."""
    check_within(low, lowest, highest, f"{where}.{name}_min")
    check_within(high, lowest, highest, f"{where}.{name}_max")
    if low > high:
        raise DataError(f"{where}.{name}_min is {low}, but must not be above {name}_max, which is {high}")
