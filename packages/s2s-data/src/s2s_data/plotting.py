"""matplotlib, which pictures need and nothing else does."""

from importlib import import_module
from typing import Any

from s2s_data.errors import DataError

USER_COLOUR = "tab:blue"
AGENT_COLOUR = "tab:orange"


def figure(width_inches: float, height_inches: float) -> Any:
    """Return an empty matplotlib figure, made without a display.

    Raises :class:`DataError` if matplotlib isn't installed.
    """
    try:
        make = import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise DataError("pictures need matplotlib: pip install 's2s-data[plots]'") from error
    return make(figsize=(width_inches, height_inches), layout="constrained")
