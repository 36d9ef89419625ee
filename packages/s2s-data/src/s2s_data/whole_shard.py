"""Writing a shard so that it is there as a whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2s_data.shar import CUTS


@contextmanager
def whole_shard(unfinished: Path, folder: Path) -> Iterator[Path]:
    """Within it `unfinished` is a new folder for a shard's files; behind it they are moved to `folder`.

    What an earlier process left in `unfinished` is removed. The manifest is moved last: without it there is no shard.
    """
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    for path in sorted(unfinished.iterdir(), key=is_manifest):
        path.replace(folder / path.name)
    unfinished.rmdir()


def is_manifest(path: Path) -> bool:
    """Whether a shard's file is the one that names the others."""
    return path.name.startswith(f"{CUTS}.")
