"""Where weights and what belongs to them lie, for a kernel that goes through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

PIECE = 4096  # numbers that one program of the kernel works on
ALIGNED = 16  # bytes
MOST_TABLES = 64  # that are kept; gradients that aren't of graphs may never lie in the same place twice


def fit_in_a_table(*lists: Sequence[Tensor]) -> bool:
    """Whether these tensors lie on one GPU, in one dtype, without gaps, and alike in each list."""
    first = lists[0][0] if lists[0] else None
    if first is None or not first.is_cuda:
        return False
    return all(
        tensor.device == first.device
        and tensor.dtype == first.dtype
        and tensor.stride() == of_weight.stride()
        and torch.ops.aten.is_non_overlapping_and_dense(tensor)
        and tensor.data_ptr() % ALIGNED == 0
        for tensors in lists
        for tensor, of_weight in zip(tensors, lists[0], strict=True)
    )


class WeightTable:
    """A row of addresses for each weight, on its device, and for each piece of `PIECE` numbers its weight.

    Attributes:
        rows: int64 [weights, lists + 2]: addresses, then the number of numbers, then the first piece.
        weight_of_piece: int32 [pieces].
        dtype: of the weights.
    """

    def __init__(self, lists: Sequence[Sequence[Tensor]]) -> None:
        weights = lists[0]
        device, self.dtype = weights[0].device, weights[0].dtype
        sizes = [weight.numel() for weight in weights]
        counts = torch.tensor([-(-size // PIECE) for size in sizes])
        first = counts.cumsum(0) - counts
        rows = torch.tensor([*([tensor.data_ptr() for tensor in tensors] for tensors in lists), sizes]).T
        self.rows = _sent(torch.cat([rows, first[:, None]], dim=1).contiguous(), device)
        pieces = torch.arange(len(weights), dtype=torch.int32).repeat_interleave(counts)
        self.weight_of_piece = _sent(pieces, device)


class WeightTables:
    """Tables of an optimizer's weights, one for each place where their gradients have lain.

    Batches of another size may have theirs elsewhere, and come back. Looking at thousands of tensors anew in each step
    takes longer than the GPU needs for a small model's.
    """

    def __init__(self) -> None:
        self._known: dict[object, WeightTable | None] = {}

    def find(self, *lists: Sequence[Tensor], steps: Sequence[Tensor]) -> WeightTable | None:
        """The table of weights, gradients and whatever more there is of each weight, then its count of steps.

        None where they don't fit in one (`fit_in_a_table`). What lies where something lay before is taken for the same
        if gradients are laid out alike; weights and averages stay as they were made.
        """
        _, gradients, *_ = lists
        places = tuple(map(Tensor.data_ptr, chain(*lists, steps)))
        key = (places, tuple(map(Tensor.stride, gradients)))
        if key not in self._known:
            if len(self._known) >= MOST_TABLES:
                self._known.clear()
            self._known[key] = WeightTable([*lists, steps]) if fit_in_a_table(*lists) else None
        return self._known[key]


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory: else the host would wait for all that was launched before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
