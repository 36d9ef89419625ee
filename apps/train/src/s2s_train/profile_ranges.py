"""Named ranges around the parts of a training step, put there from outside while it is profiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.profilers import Profiler

PREFIX = "s2s:"  # of a range's name in the trace
STEPS = "steps"  # the range around all profiled steps
OTHER = "other"
DATA_WAIT = "data wait"
HEADS = "heads and loss"  # a head's loss is computed with its logits, piece by piece
COMMUNICATION = "communication"  # no range: known by its kernels

# Methods of the model, by the part of a step that they are.
_MODEL_PARTS = {
    "encode_source": "perception",
    "target_codes": "codec",
    "hidden_states": "LLM",
    "_logits": HEADS,
    "_loss_sums": HEADS,
    "_reduced_loss_sums": HEADS,
}
# What Lightning tells its profiler, by the end of the name (checked with 2.5.6).
_LOOP_PARTS = {
    ".train_dataloader_next": DATA_WAIT,
    ".batch_to_device": "copy to device",
    ".training_step": OTHER,  # it lies within the optimizer's step
    ".backward": "backward",
    ".optimizer_step": "optimizer",
}
PARTS = (
    DATA_WAIT,
    "copy to device",
    "codec",
    "perception",
    "LLM",
    HEADS,
    "backward",
    COMMUNICATION,
    "optimizer",
    OTHER,
)

Opener = Callable[[str], Any]  # of a named range, a context manager


@contextmanager
def marked_parts(trainer: Trainer, model: LightningModule, open_range: Opener) -> Iterator[None]:
    """Within it each part of a step lies in a range of its name; after it all is as it was."""
    loop: Any = trainer  # its attribute isn't in Lightning's types
    profiler = loop.profiler
    with ExitStack() as undo:
        for method, part in _MODEL_PARTS.items():
            assert method not in vars(model), f"{method} is wrapped already"
            setattr(model, method, _within(partial(open_range, PREFIX + part), getattr(model, method)))
            undo.callback(delattr, model, method)
        loop.profiler = LoopRanges(open_range)
        undo.callback(setattr, loop, "profiler", profiler)
        yield


class LoopRanges(Profiler):
    """Makes ranges of what Lightning's loop tells its profiler."""

    def __init__(self, open_range: Opener) -> None:
        super().__init__()
        self._open_range = open_range
        self._opened: list[tuple[str, Any]] = []

    def start(self, action_name: str) -> None:
        """Open the range of an action that is a part of the step."""
        part = next((part for end, part in _LOOP_PARTS.items() if action_name.endswith(end)), None)
        if part is not None:
            opened = self._open_range(PREFIX + part)
            opened.__enter__()
            self._opened.append((action_name, opened))

    def stop(self, action_name: str) -> None:
        """Close it."""
        if self._opened and self._opened[-1][0] == action_name:
            self._opened.pop()[1].__exit__(None, None, None)


@contextmanager
def nvtx_range(name: str) -> Iterator[None]:
    """A range that Nsight Systems shows."""
    torch.cuda.nvtx.range_push(name)
    try:
        yield
    finally:
        torch.cuda.nvtx.range_pop()


def _within(open_range: Callable[[], Any], method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with open_range():
            return method(*args, **kwargs)

    return wrapped
