"""Cross entropy over valid frames only, summed; who calls divides by the frames of all ranks.

Shapes: `N` valid frames of the batch, `V` text vocabulary, `K` codebooks, `C` codes of a codebook.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from s2s_model.config import ModelConfig, TokenWeights
from s2s_parallel.loss import cross_entropy


class LossSums(NamedTuple):
    """Losses summed over the valid frames of a batch, scalars.

    A tuple, in which FSDP finds the tensors whose backward it has to prepare: in a dataclass torch 2.11 finds none.
    """

    text: Tensor
    audio: Tensor  # of a frame: the weighted mean over codebooks
    num_frames: Tensor  # int64, what to divide by
    user_text: Tensor | None = None

    def objective(self, config: ModelConfig) -> Tensor:
        """The weighted sum that training minimises."""
        total = config.text_loss_weight * self.text + config.audio_loss_weight * self.audio
        return total if self.user_text is None else total + config.asr_loss_weight * self.user_text

    def named(self) -> dict[str, Tensor]:
        """The parts by the names under which they are logged."""
        parts = {"text_loss": self.text, "audio_loss": self.audio}
        return parts if self.user_text is None else parts | {"user_text_loss": self.user_text}


def token_weights(labels_N: Tensor, weights: TokenWeights, pad_id: int, bos_id: int, eos_id: int) -> Tensor | None:
    """The factor of each label [N] float32; None if all are 1."""
    if weights == TokenWeights():
        return None
    weights_N = torch.full(labels_N.shape, weights.text, device=labels_N.device, dtype=torch.float32)
    for token, weight in ((pad_id, weights.pad), (bos_id, weights.bos), (eos_id, weights.eos)):
        weights_N = torch.where(labels_N == token, weight, weights_N)
    return weights_N


def text_loss_sum(logits_NV: Tensor, labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Summed cross entropy of a text head, in float32."""
    losses_N = cross_entropy(logits_NV, labels_N[:, None])[:, 0]
    return losses_N.sum() if weights_N is None else (losses_N * weights_N).sum()


def code_loss_sum(logits: Tensor, labels_NK: Tensor, weights_K: Tensor, counts_N: Tensor | None = None) -> Tensor:
    """Summed cross entropy of the audio head [N, K * C] over frames, averaged over codebooks, in float32.

    `weights_K` sum to 1; `counts_N` are the frames that count, all of them if it isn't given.
    """
    losses_NK = cross_entropy(logits, labels_NK) * weights_K
    return losses_NK.sum() if counts_N is None else (losses_NK * counts_N[:, None]).sum()


def codebook_weights(weights: list[float], num_codebooks: int) -> Tensor:
    """`model.codebook_loss_weight` scaled to a sum of 1 [K], on the CPU; all alike if it isn't given.

    Raises:
        ValueError: there isn't one for each codebook, or they aren't weights.
    """
    if not weights:
        return torch.full((num_codebooks,), 1 / num_codebooks, dtype=torch.float32, device="cpu")
    if len(weights) != num_codebooks:
        raise ValueError(
            f"model.codebook_loss_weight has {len(weights)} numbers, the codec {num_codebooks} codebooks: give one each"
        )
    if min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"model.codebook_loss_weight is {weights}: give numbers from 0 up, not all of them 0")
    weights_K = torch.tensor(weights, dtype=torch.float32, device="cpu")
    return weights_K / weights_K.sum()
