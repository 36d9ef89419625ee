"""How well the next token and codes are predicted, counted for each dialogue of a batch.

Shapes: `B` batch, `T` frames (80 ms), `N` valid frames of the batch, `V` vocabulary, `K` codebooks, `C` codes.
"""

from typing import TypedDict

import torch
from torch import Tensor

from s2s_model.channels import DuplexInputs
from s2s_parallel.loss import cross_entropy, whole


class FrameStatistics(TypedDict):
    """Sums over a dialogue's valid frames, from which accuracies and perplexities of any set of dialogues follow.

    `nll`: negative log likelihood of the reference in nats, float32, without the loss's weights. `hits`: how often
    the likeliest is the reference, int64.
    """

    frames: Tensor  # [B] int64
    text_nll: Tensor  # [B]
    text_hits: Tensor  # [B]
    tokens: Tensor  # [B] int64: frames whose text is no padding
    token_nll: Tensor  # [B], of those
    token_hits: Tensor  # [B]
    code_nll: Tensor  # [B, K]
    code_hits: Tensor  # [B, K]


def frame_statistics(logits_NV: Tensor, code_logits: Tensor, inputs: DuplexInputs, pad_id: int) -> FrameStatistics:
    """Count; logits [N, V] and [N, K * C] are those of `inputs.valid_BT`, whole or shares of tensor parallel peers."""
    valid_BT = inputs.valid_BT
    text_N, codes_NK = inputs.text_labels_BT[valid_BT], inputs.code_labels_BTK[valid_BT]
    text_nll_N = cross_entropy(logits_NV, text_N[:, None])[:, 0]
    text_hits_N = whole(logits_NV).argmax(-1) == text_N
    said_N = text_N != pad_id
    best_NK = whole(code_logits).unflatten(-1, (codes_NK.shape[1], -1)).argmax(-1)
    return FrameStatistics(
        frames=valid_BT.sum(1),
        text_nll=_by_dialogue(text_nll_N, valid_BT),
        text_hits=_by_dialogue(text_hits_N.long(), valid_BT),
        tokens=_by_dialogue(said_N.long(), valid_BT),
        token_nll=_by_dialogue(text_nll_N * said_N, valid_BT),
        token_hits=_by_dialogue((text_hits_N & said_N).long(), valid_BT),
        code_nll=_by_dialogue(cross_entropy(code_logits, codes_NK), valid_BT),
        code_hits=_by_dialogue((best_NK == codes_NK).long(), valid_BT),
    )


def _by_dialogue(of_frames: Tensor, valid_BT: Tensor) -> Tensor:
    """Sum [N, *] over each dialogue's frames: [B, *]. Always in the same order, unlike a scattered sum on a GPU."""
    on_grid = torch.zeros(*valid_BT.shape, *of_frames.shape[1:], dtype=of_frames.dtype, device=of_frames.device)
    on_grid[valid_BT] = of_frames
    return on_grid.sum(1)
