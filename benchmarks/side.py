"""One of the two models that a benchmark compares: what is done with it in the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from benchmarks.timing import forget_peak, free, peak_gib, summary, timed_ms
from s2s_model.dtypes import default_dtype
from s2s_train.calibrate_memory import is_out_of_memory

CLIP_NORM = 1.0

Opener = Callable[[str], Any]  # of a named range, a context manager


class Side(ABC):
    """A model on its device, in float32 until `to_training_dtype`.

    Args:
        model: its network.
        device: where it is.
        dtype: what it is trained in, bf16 as Lightning's bf16-true has it.
    """

    name = ""
    answering: ClassVar[dict[str, Any]] = {}  # arguments of `offline_inference`

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.model = model
        self.device = device
        self.dtype = torch.float32
        self._training_dtype = dtype
        # Neither model has a trainer: what they log goes nowhere.
        model.log = model.log_dict = lambda *args, **kwargs: None

    def to_training_dtype(self) -> None:
        """Cast the weights and make the optimizer."""
        self.dtype = self._training_dtype
        self.cast()
        self.make_optimizer()

    @abstractmethod
    def cast(self) -> None:
        """Bring all but the codec to `self.dtype`."""

    @abstractmethod
    def make_optimizer(self) -> None:
        """As the model's config says."""

    @abstractmethod
    def loss(self, batch: dict[str, Any]) -> Tensor:
        """The loss of Lightning's `training_step`."""

    @abstractmethod
    def update(self) -> None:
        """Clip the gradients, step, and drop them."""

    @abstractmethod
    def forget(self) -> None:
        """Drop what a step that failed has left."""

    def drop_graphs(self) -> None:  # noqa: B027  # NeMo's has none
        """Free what replays of earlier batches keep, so that memory is a case's own."""

    @abstractmethod
    def codes(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The agent's codes [B, T, K] and frames [B]."""

    @abstractmethod
    def validate(self, batches: Sequence[dict[str, Any]]) -> None:
        """Lightning's validation hooks over `batches`, without scoring."""

    @abstractmethod
    def marked(self, open_range: Opener) -> AbstractContextManager[None]:
        """Within it the parts of the forward pass lie in ranges."""

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The loss, with the default dtype that Lightning sets."""
        self.model.train()
        with default_dtype(self.dtype):
            return self.loss(batch)

    def step(self, batch: dict[str, Any], open_range: Opener = lambda name: nullcontext()) -> Tensor:
        """A whole training step; returns its loss."""
        loss = self.forward(batch)
        with open_range("backward"):
            loss.backward()
        with open_range("optimizer"):
            self.update()
        return loss.detach()

    def loss_and_norm(self, batch: dict[str, Any]) -> dict[str, float]:
        """The loss, and the 2-norm of all gradients, which are dropped."""
        loss = self.forward(batch)
        loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        self.forget()
        return {"loss": float(loss), "gradient_norm": float(norm)}

    def answer(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer the batch's recordings, audio included."""
        self.model.eval()
        with default_dtype(self.dtype):
            answer: dict[str, Any] = self.model.offline_inference(
                batch["source_audio"], batch["source_audio_lens"], **self.answering
            )
        return answer


def train(side: Side, batches: Sequence[dict[str, Any]], warm_up: int, rounds: int, steps: int) -> dict[str, Any]:
    """Steps on `batches` in turn: milliseconds, the peak of memory, loss and gradients of the first batch.

    A round is `steps` times all batches, as in training: the host waits for the device at both ends of a round only, if
    the model doesn't make it wait. `first_ms` is its first forward and backward, compiling included.

    Out of memory is a result, not an error: `out_of_memory` says so, and `peak_gib` how far it came.
    """
    side.drop_graphs()
    free()
    out_of_memory = False
    try:
        figures = _timed_steps(side, batches, warm_up, rounds, steps)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True  # what it has left is freed once this block is behind
    if out_of_memory:
        reached = peak_gib()
        side.forget()
        free()
        return {"out_of_memory": True, "peak_gib": reached}
    return figures


def _timed_steps(
    side: Side, batches: Sequence[dict[str, Any]], warm_up: int, rounds: int, steps: int
) -> dict[str, Any]:
    agreement: dict[str, float] = {}
    first_ms = timed_ms(lambda: agreement.update(side.loss_and_norm(batches[0])))

    def go_through(times: int) -> None:
        for _ in range(times):
            for batch in batches:
                side.step(batch)

    go_through(warm_up)
    forget_peak()
    times_ms = summary([timed_ms(partial(go_through, steps)) / steps for _ in range(rounds)])
    return {
        **times_ms,
        "first_ms": round(first_ms, 1),
        "peak_gib": peak_gib(),
        **agreement,
    }


@contextmanager
def wrapped(owner: Any, method: str, open_range: Callable[[], Any]) -> Iterator[None]:
    """Within it calls of `owner.method` lie in a range; after it all is as it was."""
    original = getattr(owner, method)
    had_own = method in vars(owner)

    def call(*args: Any, **kwargs: Any) -> Any:
        with open_range():
            return original(*args, **kwargs)

    setattr(owner, method, call)
    try:
        yield
    finally:
        if had_own:
            setattr(owner, method, original)
        else:
            delattr(owner, method)
