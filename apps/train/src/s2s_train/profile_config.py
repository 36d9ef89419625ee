"""The `profile` section: which steps of a run are looked into."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass
class ProfileConfig:
    """What `fit` looks into; off unless `steps` is given."""

    steps: list[int] | None = None  # [first, end], as [10, 13]: optimizer steps 10, 11 and 12, counted from 0
    memory: bool = False  # on a GPU: also who holds its memory, for https://pytorch.org/memory_viz
    nvtx: bool = False  # on a GPU: ranges for Nsight Systems, in place of torch's trace and the table


def check_steps(steps: list[int], where: str = "profile.steps") -> range:
    """Return the steps of `steps`.

    Raises:
        ValueError: they aren't a first step and an end behind it; `where` is the key or flag quoted.
    """
    if len(steps) != 2 or not 0 <= steps[0] < steps[1]:
        raise ValueError(f"{where} is {steps}: give a first step and an end behind it; 10 and 13 are steps 10, 11, 12")
    return range(*steps)


def parse_steps(text: str) -> list[int]:
    """Return the steps of the command's FIRST:END.

    Raises:
        ValueError: it is written otherwise, or holds no step.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None:
        raise ValueError(f"--steps is {text!r}: give FIRST:END such as 10:13, the steps 10, 11 and 12 counted from 0")
    steps = [int(number) for number in match.groups()]
    check_steps(steps, "--steps")
    return steps
