"""Reading all of the data, in one process or several."""

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from s2s_data.check.compare import compare_cuts
from s2s_data.check.cut import PartFindings, Settings, check_part
from s2s_data.check.kinds import Problem
from s2s_data.inputs import Part, find_parts
from s2s_data.roles import Roles


class Report(NamedTuple):
    """How many cuts were read, and what is wrong with them."""

    num_cuts: int
    problems: list[Problem]


def check_shar(
    data: str | Sequence[str],
    roles: Roles,
    frame_length_s: float = 0.08,
    *,
    codec_fingerprint: str | None = None,
    num_workers: int = 0,
    progress: bool = False,
) -> Report:
    """Read every cut of Shars and blends with its audio and its codes.

    Parameters
    ----------
    data
        Shar folders and blend files (``.yaml``), one or several; they are compared with each other.
    roles
        Whose supervisions are whose.
    frame_length_s
        The length of a frame.
    codec_fingerprint
        The codec that stored codes must be of; None: the one that most cuts have.
    num_workers
        Processes, each of which reads a shard at a time; 0 reads in this one.
    progress
        Show a progress bar on stderr, if that is a terminal.

    Returns
    -------
    Report
        The problems by shard, and then those of all the data together.

    Raises
    ------
    DataError
        If a folder is no Shar, or a blend file is wrong.

    """
    paths = [data] if isinstance(data, str) else data
    parts = find_parts(paths, shares_per_manifest=max(1, num_workers))
    settings = Settings(roles, frame_length_s, codec_fingerprint)
    findings = _findings(parts, settings, num_workers)
    quiet = None if progress else True  # None: unless stderr is a terminal
    problems, facts = [], []
    for found in tqdm(findings, total=len(parts), unit="shard", disable=quiet):
        problems += found.problems
        facts += found.facts
    if not facts:
        problems.append(Problem("no-cuts", None, ", ".join(paths), "there isn't a single cut that can be read"))
    problems += compare_cuts(facts, roles)
    return Report(len(facts), problems)


def _findings(parts: Sequence[Part], settings: Settings, num_workers: int) -> Iterator[PartFindings]:
    check = partial(check_part, settings=settings)
    if num_workers == 0:
        yield from map(check, parts)
        return
    # Ctrl-C reaches every process, and should print no traceback
    with ProcessPoolExecutor(num_workers, None, signal.signal, (signal.SIGINT, signal.SIG_DFL)) as pool:
        yield from pool.map(check, parts)
