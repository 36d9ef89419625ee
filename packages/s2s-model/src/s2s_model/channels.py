"""From the agent's codes and text to what the LLM reads and what it is asked to predict.

Shapes: `B` batch, `T` frames (80 ms), `K` codebooks, `H` hidden.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpeechTokens:
    """A codec's codebook with three control codes behind its last entry."""

    codebook_size: int

    @property
    def vocab_size(self) -> int:
        """Codes and control codes of one codebook."""
        return self.codebook_size + 3

    @property
    def bos_id(self) -> int:
        """Stands where the agent's text has BOS."""
        return self.codebook_size

    @property
    def eos_id(self) -> int:
        """Stands where the agent's text has EOS."""
        return self.codebook_size + 1

    @property
    def delay_id(self) -> int:
        """Stands before the first frame: speech runs one frame behind text."""
        return self.codebook_size + 2

    def replace_control(self, codes_BTK: Tensor, silence_K: Tensor) -> Tensor:
        """Put silence where a frame holds a control code, so that the codec can decode it.

        The whole frame goes silent: a frame with a control code in one codebook has no sound of its own.
        """
        control_BT1 = (codes_BTK >= self.codebook_size).any(dim=-1, keepdim=True)
        return torch.where(control_BT1, silence_K, codes_BTK)


@dataclass(frozen=True)
class DuplexInputs:
    """One training example per frame: inputs, labels and which of them count."""

    source_BTH: Tensor  # encoded user frames
    text_BT: Tensor  # the agent's text token one frame ago
    codes_BTK: Tensor  # the agent's codes one frame ago (with one frame of delay: two behind the codec's own grid)
    text_labels_BT: Tensor
    code_labels_BTK: Tensor
    valid_BT: Tensor  # bool; False beyond an example's end
    user_text_BT: Tensor | None = None  # the user's text token one frame ago, where the model writes that too
    user_text_labels_BT: Tensor | None = None
    sounds_BT: Tensor | None = None  # bool; valid frames that have sound, where some dialogues are text alone


def delay_codes(
    codes_BTK: Tensor, text_BT: Tensor, tokens: SpeechTokens, text_bos: int, text_eos: int, by: int = 1
) -> Tensor:
    """Insert speech BOS/EOS where the text has them, then shift right by `by` frames (0 or more)."""
    text_BT1 = text_BT[..., None]
    codes_BTK = torch.where(text_BT1 == text_bos, tokens.bos_id, codes_BTK)
    codes_BTK = torch.where(text_BT1 == text_eos, tokens.eos_id, codes_BTK)
    by = min(by, codes_BTK.shape[1])
    return torch.cat([torch.full_like(codes_BTK[:, :by], tokens.delay_id), codes_BTK[:, : codes_BTK.shape[1] - by]], 1)


def align_channels(
    source_BTH: Tensor, text_BT: Tensor, codes_BTK: Tensor, lens: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cut the three streams to the shortest.

    `lens` are the valid frames [B] of source, text and codes. Returns the three streams, the valid frames [B]
    and by how many frames the streams of each example differ [B].
    """
    length = min(source_BTH.shape[1], text_BT.shape[1], codes_BTK.shape[1])
    stacked = torch.stack([x.to(text_BT.device) for x in lens])
    valid_B = stacked.amin(dim=0).clamp(max=length)
    spread_B = stacked.amax(dim=0) - stacked.amin(dim=0)
    return source_BTH[:, :length], text_BT[:, :length], codes_BTK[:, :length], valid_B, spread_B


def make_inputs(
    source_BTH: Tensor,
    text_BT: Tensor,
    delayed_BTK: Tensor,
    lens_B: Tensor,
    user_text_BT: Tensor | None = None,
    text_only_B: Tensor | None = None,
) -> DuplexInputs:
    """Split aligned streams of T frames into T-1 inputs and the labels one frame ahead of them."""
    steps = torch.arange(text_BT.shape[1] - 1, device=text_BT.device)
    valid_BT = steps[None] < (lens_B[:, None] - 1)
    return DuplexInputs(
        source_BTH=source_BTH[:, :-1],
        text_BT=text_BT[:, :-1],
        codes_BTK=delayed_BTK[:, :-1],
        text_labels_BT=text_BT[:, 1:],
        code_labels_BTK=delayed_BTK[:, 1:],
        valid_BT=valid_BT,
        user_text_BT=None if user_text_BT is None else user_text_BT[:, :-1],
        user_text_labels_BT=None if user_text_BT is None else user_text_BT[:, 1:],
        sounds_BT=None if text_only_B is None else valid_BT & ~text_only_B[:, None],
    )


def hide_codes(inputs: DuplexInputs, share: float, delay_id: int) -> DuplexInputs:
    """Replace the codes that the LLM reads by the delay code in a random `share` of the dialogues.

    A codec's first codes of an answer can give away all of it. A model that reads the reference codes in training
    then learns to look there instead of listening to the user, and fails where the codes are its own.
    """
    hidden_B11 = torch.rand(len(inputs.codes_BTK), 1, 1, device=inputs.codes_BTK.device) < share
    return replace(inputs, codes_BTK=torch.where(hidden_B11, delay_id, inputs.codes_BTK))


def agent_turns(tokens_T: list[int], bos_id: int, eos_id: int) -> list[tuple[int, int]]:
    """The frames [start, end) of the turns in a text channel: from BOS to EOS, the next BOS or the end."""
    turns: list[tuple[int, int]] = []
    start: int | None = None
    for t, token in enumerate(tokens_T):
        if token in (bos_id, eos_id) and start is not None:
            turns.append((start, t))
            start = None
        if token == bos_id:
            start = t
    if start is not None:
        turns.append((start, len(tokens_T)))
    return turns
