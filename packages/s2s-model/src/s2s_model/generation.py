"""Frame-by-frame greedy generation.

Shapes: `B` batch, `T` frames (80 ms), `K` codebooks, `H` hidden.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Generated(NamedTuple):
    """What the agent wrote and said, control tokens included."""

    text_BT: Tensor  # int64
    codes_BTK: Tensor  # int64, on the codec's own grid: no delay


class FrameModel(NamedTuple):
    """The parts of the model that one step of generation needs."""

    embed: Callable[[Tensor, Tensor, Tensor], Tensor]  # source [B,T,H], text [B,T], codes [B,T,K] -> [B,T,H]
    body: Callable[..., Any]  # the LLM without its heads, Hugging Face's calling convention
    heads: Callable[[Tensor], tuple[Tensor, Tensor]]  # hidden [B, H] -> text [B, V], codes [B, K, C]


@torch.no_grad()
def generate_greedy(model: FrameModel, source_BTH: Tensor, text_0: int, code_0: int, num_codebooks: int) -> Generated:
    """Predict text and codes at each frame from the user's frames up to it and from what was predicted before.

    The first frame reads `text_0` (PAD) and `code_0` (the speech delay code) as what came before.
    """
    from transformers import DynamicCache

    B, T, _ = source_BTH.shape
    device = source_BTH.device
    text_BT = torch.empty(B, T + 1, dtype=torch.long, device=device)
    codes_BTK = torch.empty(B, T + 1, num_codebooks, dtype=torch.long, device=device)
    text_BT[:, 0] = text_0
    codes_BTK[:, 0] = code_0
    cache = DynamicCache()
    for t in range(T):
        now = slice(t, t + 1)
        embeds_B1H = model.embed(source_BTH[:, now], text_BT[:, now], codes_BTK[:, now])
        hidden_B1H = model.body(inputs_embeds=embeds_B1H, past_key_values=cache, use_cache=True).last_hidden_state
        text_BV, codes_BKC = model.heads(hidden_B1H[:, 0])
        text_BT[:, t + 1] = text_BV.argmax(dim=-1)
        codes_BTK[:, t + 1] = codes_BKC.argmax(dim=-1)
    return Generated(text_BT[:, 1:], codes_BTK[:, 1:])
