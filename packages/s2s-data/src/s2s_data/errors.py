"""The error that a user's data or configuration can cause."""

import difflib
import re
from collections.abc import Iterable


class DataError(ValueError):
    """Data or configuration that can't be used; the message says what, where and what to do.

    A DataLoader re-raises an error of its worker as ``type(error)(whole traceback)``: only the message itself
    is kept, so that what a user meets is one line with any number of workers.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.split(r"(?:DataError|UnreadableCutError): ", message)[-1].strip())


class UnreadableCutError(DataError):
    """One dialogue that can't be loaded. Training skips it, within ``max_unreadable_share``."""


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Say that ``name`` isn't one of ``known``, with the nearest of them where one is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {name!r}: {hint}known are {', '.join(known)}"
