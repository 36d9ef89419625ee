"""Where weights and what belongs to them lie, for a kernel that goes through all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 4096  # numbers that one program of the kernel works on
ALIGNED = 16  # bytes


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

    def __init__(self) -> None:
        self._addresses: list[list[int]] = []
        self._sizes: list[int] = []
        self.weight_of_piece: Tensor

    def follow(self, lists: Sequence[Sequence[Tensor]]) -> None:
        """Write the table anew if tensors have moved since the last call."""
        addresses = [[tensor.data_ptr() for tensor in tensors] for tensors in lists]
        weights = lists[0]
        sizes = [weight.numel() for weight in weights]
        if addresses == self._addresses and sizes == self._sizes:
            return
        device = weights[0].device
        counts = torch.tensor([-(-size // PIECE) for size in sizes])
        first = counts.cumsum(0) - counts
        rows = torch.tensor([*addresses, sizes]).T
        # Gradients of a batch of another size may lie elsewhere: each step may come by here.
        self.rows = _sent(torch.cat([rows, first[:, None]], dim=1).contiguous(), device)
        if sizes != self._sizes or self.weight_of_piece.device != device:
            pieces = torch.arange(len(weights), dtype=torch.int32).repeat_interleave(counts)
            self.weight_of_piece = _sent(pieces, device)
        self._addresses, self._sizes, self.dtype = addresses, sizes, weights[0].dtype


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """From pinned memory: else the host would wait for all that was launched before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
