"""Cross entropy over valid frames only, summed; who calls divides by the frames of all ranks.

Shapes: `N` valid frames of the batch, `H` hidden, `V` text vocabulary, `K` codebooks, `C` codes of a codebook.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def text_loss_sum(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    """Summed cross entropy of the text head, in float32."""
    return F.cross_entropy(logits_NV.float(), labels_N, reduction="sum")


def code_loss_sum(logits_NKC: Tensor, labels_NK: Tensor) -> Tensor:
    """Summed cross entropy of the audio head over frames, averaged over codebooks, in float32."""
    num_codebooks = labels_NK.shape[1]
    return F.cross_entropy(logits_NKC.flatten(0, 1).float(), labels_NK.flatten(), reduction="sum") / num_codebooks


def all_finite(loss: Tensor) -> bool:
    """Whether the loss is finite on every rank, so that all of them stop together."""
    finite = torch.isfinite(loss).float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(finite, op=torch.distributed.ReduceOp.MIN)
    return bool(finite)


def frames_per_rank(num_frames: Tensor) -> Tensor:
    """The mean number of valid frames over data-parallel ranks.

    Data parallelism averages gradients over ranks: sums divided by this mean give the gradient of the sum over
    all frames divided by all frames, however unevenly the ranks are filled.
    """
    mean = num_frames.float()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(mean)
        mean = mean / torch.distributed.get_world_size()
    return mean.clamp(min=1.0)
