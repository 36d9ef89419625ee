"""Where a turn's text is put on the frame grid.

BOS stands at the frame where the turn starts, its tokens follow one a frame or spread over the turn, EOS stands at the
frame where the turn ends, and PAD everywhere else. Shapes: ``T`` frames (80 ms).
"""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import torch
from lhotse.utils import compute_num_frames
from torch import Tensor

from s2s_data.batch import Turn
from s2s_data.tokenizer import TextTokenizer

logger = logging.getLogger(__name__)


class FrameGrid(NamedTuple):
    """The frames of one dialogue."""

    num_frames: int
    frame_length_s: float
    sample_rate_hz: int  # the rate of the cut: lhotse counts frames in samples

    @classmethod
    def of(cls, duration_s: float, frame_length_s: float, sample_rate_hz: int) -> "FrameGrid":
        """Return the grid of a dialogue of ``duration_s``."""
        num_frames = compute_num_frames(duration_s, frame_length_s, sample_rate_hz)
        return cls(num_frames, frame_length_s, sample_rate_hz)

    def frame_at(self, time_s: float) -> int:
        """Return the frame of a time; 0 for what lies before the dialogue's start."""
        return max(0, int(compute_num_frames(time_s, self.frame_length_s, self.sample_rate_hz)))


class TextChannel(NamedTuple):
    """One speaker's text on the frame grid."""

    tokens_T: Tensor  # [T] int64
    num_dropped_tokens: int  # text tokens that found no frame before their turn's end
    num_mistimed_turns: int = 0  # turns to be spread whose words with times aren't as many as their text's


def build_text_channel(
    turns: Sequence[Turn], grid: FrameGrid, tokenizer: TextTokenizer, *, spread: bool = False, lead: int = 0
) -> TextChannel:
    """Put the text of one speaker's ``turns`` on ``grid``.

    A turn lasts until its EOS, the speaker's next turn, or the dialogue's end, whichever is first; text that
    needs more frames is cut there and counted. A turn of no frame is left out (its text is counted too). A
    turn that the dialogue's end or the next turn interrupts has no EOS. With ``spread`` a turn's tokens stand at
    equal distances from its start to its end, about where they are said; where its words have times, those of each
    span of them from its start to its end. With a ``lead`` the tokens of such a span stand one a frame instead, from
    so many frames before its start on, though not before the turn's.
    """
    tokens = [tokenizer.pad_id] * grid.num_frames  # a list: a tensor's slices cost more than all the rest here
    num_dropped = num_mistimed = 0
    spans = sorted(
        (grid.frame_at(turn.start_s), grid.frame_at(turn.end_s), turn.text, i) for i, turn in enumerate(turns)
    )
    next_starts = [*(start for start, _, _, _ in spans), grid.num_frames][1:]
    for (start, end, text, i), next_start in zip(spans, next_starts, strict=True):
        limit = min(next_start, grid.num_frames)
        ids = tokenizer.text_to_ids(text)
        room = max(0, min(end, limit) - start - 1)
        offsets: Sequence[int] = range(len(ids))
        if spread:
            timed = _has_times(turns[i])
            num_mistimed += len(turns[i].words) > 0 and not timed
            num_frames = end - start - 1
            offsets = _spread(len(ids), num_frames)
            if timed:
                offsets = _said(turns[i], len(ids), num_frames, grid, tokenizer, lead)
        kept = bisect_left(offsets, room)
        num_dropped += len(ids) - kept
        if min(end, limit) <= start:
            continue
        tokens[start] = tokenizer.bos_id
        if spread:
            for offset, token_id in zip(offsets[:kept], ids[:kept], strict=True):
                tokens[start + 1 + offset] = token_id
        else:
            tokens[start + 1 : start + 1 + kept] = ids[:kept]
        if end < limit:
            tokens[end] = tokenizer.eos_id
    return TextChannel(torch.tensor(tokens, dtype=torch.int64), num_dropped, num_mistimed)


def _spread(num_tokens: int, num_frames: int) -> list[int]:
    """Frames of tokens at equal distances; one a frame where there are more than frames.

    An interrupted turn's tokens stay where they are said: those behind the interruption are cut.
    """
    step = max(1.0, num_frames / max(num_tokens, 1))
    return [int(i * step) for i in range(num_tokens)]


def _has_times(turn: Turn) -> bool:
    """Whether the turn's words with times are as many as its text's."""
    return len(turn.words) > 0 and sum(len(span.text.split()) for span in turn.words) == len(turn.text.split())


def _said(
    turn: Turn, num_tokens: int, num_frames: int, grid: FrameGrid, tokenizer: TextTokenizer, lead: int
) -> list[int]:
    """Frames of tokens from where each span of words starts, evenly over it; or one a frame, ``lead`` frames earlier.

    Never before the token before, and early enough for all that follow it in the turn's ``num_frames``. The tokens of
    the first words are as many as those of a text of these words alone: about right, where a tokenizer merges words.
    """
    first_frame = grid.frame_at(turn.start_s) + 1
    words = turn.text.split()
    num_words = 0
    offsets: list[int] = []
    for span in turn.words:
        num_words += len(span.text.split())
        text = " ".join(words[:num_words])
        num_said = min(len(tokenizer.text_to_ids(text)), num_tokens) if num_words < len(words) else num_tokens
        start_s = turn.start_s + span.start_s
        start = max(grid.frame_at(start_s) - first_frame - lead, offsets[-1] + 1 if offsets else 0)
        room = 0 if lead else grid.frame_at(start_s + span.duration_s) - first_frame - start
        offsets += [start + offset for offset in _spread(max(0, num_said - len(offsets)), room)]
    return [max(i, min(offset, num_frames - num_tokens + i)) for i, offset in enumerate(offsets)]


TOO_LONG = "text longer than its turn: %d tokens cut in %d dialogues so far, the last is cut %s"
MISTIMED = (
    "words with times aren't as many as the text's: %d turns in %d dialogues so far are spread evenly, the last is "
    "cut %s: align its text anew, or take the alignment 'word' off its supervisions"
)

UNTIMED = (
    "no times of words: data.lead_target_text_by doesn't move the text of %d turns in %d dialogues so far, the last is "
    "cut %s: align it (the alignment 'word' of its supervisions), or leave the key out"
)


class TextFitLog:
    """Counts the dialogues in which something doesn't fit, and says so in one line at 1, 10, 100, … of them."""

    def __init__(self, message: str) -> None:
        """``message`` takes the number of misfits, that of dialogues, and a cut's id."""
        self.message = message
        self.num_cuts = 0
        self.num_misfits = 0

    def add(self, cut_id: str, num_misfits: int) -> None:
        """Count one dialogue."""
        if num_misfits == 0:
            return
        self.num_cuts += 1
        self.num_misfits += num_misfits
        if 10 ** (len(str(self.num_cuts)) - 1) == self.num_cuts:
            logger.warning(self.message, self.num_misfits, self.num_cuts, cut_id)
