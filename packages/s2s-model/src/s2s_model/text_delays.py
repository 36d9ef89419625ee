"""Moving a text channel against the audio.

Shapes: `B` batch, `T` frames (80 ms).
"""

import torch
from torch import Tensor


def shift_text(text_BT: Tensor, lens_B: Tensor, by: int, ids: tuple[int, int, int]) -> Tensor:
    """Move the text `by` frames later (earlier if negative), PAD where nothing is left.

    A turn whose end is pushed out of its dialogue ends in the dialogue's last frame; one whose beginning is
    pushed out begins in the first. `ids` are PAD, BOS and EOS.
    """
    if by == 0:
        return text_BT
    pad, bos, eos = ids
    num_frames = text_BT.shape[1]
    steps = torch.arange(num_frames, device=text_BT.device)
    source = (steps - by).expand_as(text_BT)
    inside = (source >= 0) & (source < lens_B[:, None]) & (steps < lens_B[:, None])
    moved_BT = torch.where(inside, text_BT.gather(1, source.clamp(0, num_frames - 1)), pad)
    if by > 0:
        return _close_last_turn(moved_BT, lens_B, bos, eos)
    return _open_first_turn(moved_BT, text_BT[:, : -by or None], bos, eos)


def _close_last_turn(text_BT: Tensor, lens_B: Tensor, bos: int, eos: int) -> Tensor:
    """Put EOS into the last frame of the dialogues that end within a turn."""
    last_bos_B, last_eos_B = _last(text_BT == bos), _last(text_BT == eos)
    end_B1 = (lens_B - 1).clamp(min=0)[:, None]
    is_open_B1 = (last_bos_B > last_eos_B)[:, None] & (last_bos_B[:, None] < end_B1)
    return text_BT.scatter(1, end_B1, torch.where(is_open_B1, eos, text_BT.gather(1, end_B1)))


def _open_first_turn(text_BT: Tensor, lost_BN: Tensor, bos: int, eos: int) -> Tensor:
    """Put BOS into the first frame of the dialogues whose first turn lost its own."""
    is_open_B = _last(lost_BN == bos) > _last(lost_BN == eos)
    return torch.cat([torch.where(is_open_B, bos, text_BT[:, 0])[:, None], text_BT[:, 1:]], dim=1)


def _last(mask_BT: Tensor) -> Tensor:
    """The last frame where the mask holds, -1 where it doesn't: [B]."""
    steps = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return torch.where(mask_BT, steps, -1).amax(dim=1)


def delay_eos(text_BT: Tensor, lens_B: Tensor, by: int, ids: tuple[int, int, int]) -> Tensor:
    """Move each EOS `by` frames later, PAD in its place; `ids` are PAD, BOS and EOS.

    It stays where it is if the move would take it out of the dialogue, or onto or past the next turn.
    """
    if by == 0:
        return text_BT
    pad, bos, eos = ids
    text_BT = text_BT.clone()
    num_control_BT = ((text_BT == bos) | (text_BT == eos)).cumsum(dim=1)
    rows, frames = (text_BT == eos).nonzero(as_tuple=True)
    places = frames + by
    fits = places < lens_B[rows]
    rows, frames, places = rows[fits], frames[fits], places[fits]
    free = num_control_BT[rows, places] == num_control_BT[rows, frames]
    rows, frames, places = rows[free], frames[free], places[free]
    text_BT[rows, frames] = pad
    text_BT[rows, places] = eos
    return text_BT
