"""Reading jsonl files line by line, with errors that name the line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from s2s_data.errors import DataError


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) of a jsonl file, which may be gzipped; empty lines are passed over.

    Raises :class:`DataError` if the file is missing, is a folder or has no row, and at a line that is no JSON object.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder: name the jsonl manifest in it")
    if not path.is_file():
        raise DataError(f"{path.absolute()}: no such file or folder: check the path (and where you run from)")
    num_rows = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    num_rows += 1
                    yield f"{path}:{number}", _row(line, f"{path}:{number}")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {error}: write it anew") from error
    if num_rows == 0:
        raise DataError(f"{path}: is empty: it needs a JSON object a line")


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: isn't JSON: {error}: correct the line, or take it out") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, but is a {type(row).__name__}")
    return row
