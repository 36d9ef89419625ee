"""What a batch is.

Shapes: ``B`` batch, ``S`` samples of user audio, ``R`` samples of agent audio, ``T`` frames (80 ms), ``K``
codebooks.
"""

from typing import NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor


class TimedWords(NamedTuple):
    """One or several words of a turn, and when they are said."""

    text: str
    start_s: float  # from the turn's start, so that it holds wherever the turn is moved
    duration_s: float


class Turn(NamedTuple):
    """One turn of a dialogue; a tuple, which Lightning and pinned memory can take apart and remake."""

    role: str  # "user" or "agent"
    start_s: float
    duration_s: float
    text: str
    value: str | None = None  # what the agent's answer must contain; None: not known
    words: tuple[TimedWords, ...] = ()  # all of its text's, in their order; none: not known, and none in a batch

    @property
    def end_s(self) -> float:
        """Where the turn ends, in seconds from the dialogue's start."""
        return self.start_s + self.duration_s


class DuplexBatch(TypedDict):
    """A batch of dialogues; every ``_lens`` is [B] int64 and counts what isn't padding.

    ``target_audio`` is absent where codes are stored and audio wasn't asked for; ``target_codes`` is there
    only where every dialogue of the batch has stored codes. A batch of no dialogue (B = 0) evens out the
    ranks at the end of a validation set: see :func:`empty_batch`.
    """

    source_audio: Tensor  # [B, S] float32 at source_sample_rate, padded with 0
    source_audio_lens: Tensor
    target_audio: NotRequired[Tensor]  # [B, R] float32 at target_sample_rate, padded with 0
    target_audio_lens: NotRequired[Tensor]
    target_codes: NotRequired[Tensor]  # [B, T, K] int64, padded with 0: mask by target_code_lens
    target_code_lens: NotRequired[Tensor]
    target_tokens: Tensor  # [B, T] int64, the agent's text channel, padded with the tokenizer's pad_id
    target_token_lens: Tensor
    source_tokens: Tensor  # [B, T] int64, the user's text channel
    source_token_lens: Tensor
    target_texts: list[str]
    source_texts: list[str]
    cut_ids: list[str]
    turns: list[list[Turn]]  # B lists, by start
    text_only: NotRequired[Tensor]  # [B] bool: dialogues whose sound says nothing; absent: none is
    num_dropped_tokens: Tensor  # [B] int64: agent text tokens for which the turn had no frame left


def first_text_only(batch: DuplexBatch) -> str | None:
    """Return the id of the first dialogue of text alone, None where none is. Waits for a batch on a device."""
    text_only_B = batch.get("text_only")
    if text_only_B is None or not text_only_B.any():
        return None
    return batch["cut_ids"][int(text_only_B.nonzero()[0])]


def empty_batch(*, num_codebooks: int | None, has_target_audio: bool) -> DuplexBatch:
    """Return the batch of no dialogue: every tensor with B = 0, every list empty.

    Ranks get equally many validation batches, so that none waits for another in a collective call; a rank for
    which no dialogue is left gets this one. It has the keys that its peers' batches have at that step.
    """
    lens_B = torch.zeros(0, dtype=torch.int64)
    tokens_BT = torch.zeros(0, 0, dtype=torch.int64)
    batch = DuplexBatch(
        source_audio=torch.zeros(0, 0),
        source_audio_lens=lens_B,
        target_tokens=tokens_BT,
        target_token_lens=lens_B,
        source_tokens=tokens_BT,
        source_token_lens=lens_B,
        target_texts=[],
        source_texts=[],
        cut_ids=[],
        turns=[],
        num_dropped_tokens=lens_B,
        text_only=lens_B.bool(),
    )
    if has_target_audio:
        batch["target_audio"] = torch.zeros(0, 0)
        batch["target_audio_lens"] = lens_B
    if num_codebooks is not None:
        batch["target_codes"] = torch.zeros(0, 0, num_codebooks, dtype=torch.int64)
        batch["target_code_lens"] = lens_B
    return batch
