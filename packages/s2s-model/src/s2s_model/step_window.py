"""What the batches of one optimizer step have in common: the frames they count, and whether their losses are finite.

An optimizer step sees several batches under gradient accumulation, on several ranks. Its gradient is that of the
summed loss over all their valid frames, divided by the number of those frames, however unevenly they are filled.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from s2s_parallel.gradients import scale_gradients


def is_distributed() -> bool:
    """Whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class StepWindow:
    """Counts from one optimizer step to the next, without a wait for the device until the step is taken."""

    def __init__(self) -> None:
        self._divisor: Tensor | None = None
        self._num_frames: list[Tensor] = []
        self._num_nonfinite: list[Tensor] = []
        self._batches: list[tuple[Tensor, list[str]]] = []

    def add(self, loss_sum: Tensor, num_frames: Tensor, cut_ids: list[str]) -> tuple[Tensor, Tensor]:
        """Take in a batch; every rank has to.

        Returns what to divide `loss_sum` by before its backward, and the mean frame count over ranks: data
        parallelism averages gradients over ranks, so sums divided by this mean give the mean over all frames.
        The divisor is the first batch's for all batches of a step; `rescale` makes up for the others' at its end.
        """
        finite = torch.isfinite(loss_sum.detach())
        counts = torch.stack([num_frames.float(), (~finite).float()])
        world_size = 1
        if is_distributed():
            torch.distributed.all_reduce(counts)
            world_size = torch.distributed.get_world_size()
        mean_frames = (counts[0] / world_size).clamp(min=1.0)
        self._num_frames.append(mean_frames)
        self._num_nonfinite.append(counts[1])
        self._batches.append((finite, cut_ids))
        if self._divisor is None:
            self._divisor = mean_frames
        return self._divisor, mean_frames

    def rescale(self, parameters: Iterable[nn.Parameter]) -> Tensor:
        """Bring the accumulated gradients to the frames of all batches; return the factor, 1 for a single batch."""
        if len(self._num_frames) <= 1:  # on their device: moving it there would wait for the device
            return torch.ones_like(self._divisor) if self._divisor is not None else torch.ones(())
        assert self._divisor is not None
        factor = self._divisor / torch.stack(self._num_frames).sum()
        scale_gradients(parameters, factor)
        return factor

    def has_nonfinite(self) -> Tensor:
        """Whether a batch's loss on any rank is NaN or infinite, a bool on the device."""
        return torch.stack(self._num_nonfinite).sum() > 0

    def nonfinite_cuts(self) -> list[str] | None:
        """The cuts of the batches whose loss is NaN or infinite, over all ranks; None if all are finite.

        Waits for the device; every rank has to call it.
        """
        if not self._num_nonfinite or not float(torch.stack(self._num_nonfinite).sum()):
            return None
        mine = [cut for finite, cuts in self._batches if not bool(finite) for cut in cuts]
        if not is_distributed():
            return mine
        gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather_object(gathered, mine)
        return list(dict.fromkeys(cut for cuts in gathered for cut in cuts))  # tensor parallel peers have the same

    @property
    def is_new(self) -> bool:
        """Whether no batch of the next step has come yet."""
        return self._divisor is None

    def cut_ids(self) -> list[str]:
        """The cuts of this rank's batches."""
        return [cut for _, cuts in self._batches for cut in cuts]

    def close(self) -> None:
        """Begin the next step's window."""
        self._divisor = None
        self._num_frames, self._num_nonfinite, self._batches = [], [], []
