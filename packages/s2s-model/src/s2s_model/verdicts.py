"""What the device finds out about a step, read by the host a step later, when it needn't wait any more.

A host that waits for each backward to end lets the device run dry: nothing is queued behind it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from s2s_model.adamw import AdamW
from s2s_model.param_groups import trained_weights


def judges_itself(optimizer: Optimizer) -> bool:
    """Whether the optimizer skips a step by a flag on the device, as torch's fused Adam and AdamW do.

    Torch's fused SGD does too, but if it is the first step it leaves a momentum that was never written. Of sharded
    weights only ours does, which looks at each process's own part.
    """
    if not isinstance(optimizer, torch.optim.Adam) or not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    if isinstance(optimizer, AdamW):
        return True
    return not any(isinstance(weight, DTensor) for weight in trained_weights(optimizer))


def skip_where(optimizer: Optimizer, bad: Tensor) -> None:
    """Have the next step skipped if `bad` is 1.0, a float32 scalar; its gradients are taken as they are."""
    vars(optimizer).update(found_inf=bad, grad_scale=None)  # the names are those of torch's gradient scaler


def divide_gradients(optimizer: Optimizer, divisor: Tensor) -> None:
    """Have the next step divide its gradients by a float32 scalar."""
    vars(optimizer)["grad_scale"] = divisor


def forget(optimizer: Optimizer) -> None:
    """Undo `skip_where` and `divide_gradients`, once the step is taken: they'd hold for all later ones."""
    for name in ("found_inf", "grad_scale"):
        vars(optimizer).pop(name, None)


class Verdicts:
    """Figures of steps that were not read yet, each with what is to be done about them."""

    def __init__(self) -> None:
        self._pending: list[tuple[Tensor, torch.cuda.Event | None, Callable[[list[float]], None]]] = []

    def add(self, figures: Tensor, judge: Callable[[list[float]], None]) -> None:
        """Call `judge` with these figures [N] once they are read."""
        event = None
        if figures.is_cuda:
            copy = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
            copy.copy_(figures, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            figures = copy
        self._pending.append((figures, event, judge))

    def read(self) -> None:
        """Read what there is; waits for the step that it is of."""
        pending, self._pending = self._pending, []
        for figures, event, judge in pending:
            if event is not None:
                event.synchronize()
            judge(figures.tolist())
