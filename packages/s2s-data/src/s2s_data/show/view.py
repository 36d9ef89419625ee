"""What is shown of a cut. Shapes: ``S`` samples, ``T`` frames (80 ms)."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from lhotse.cut import Cut

from s2s_data.audio import load_audio
from s2s_data.batch import Turn
from s2s_data.dataset import is_text_only
from s2s_data.errors import DataError
from s2s_data.inputs import find_parts
from s2s_data.roles import AGENT, USER, Roles
from s2s_data.shar import RECORDING, TARGET_AUDIO
from s2s_data.text_channel import FrameGrid, build_text_channel
from s2s_data.wording import counted
from s2s_data.words import WordTokenizer


@dataclass(frozen=True)
class ChannelView:
    """One side of a dialogue."""

    role: str
    audio_S: npt.NDArray[np.float32] | None  # None where its codes alone are stored
    sample_rate_hz: int
    turns: tuple[Turn, ...]
    words_T: tuple[str, ...]  # "PAD", "BOS", "EOS" or a word of the text
    num_dropped: int  # words that found no frame before their turn's end


@dataclass(frozen=True)
class CutView:
    """Both sides of a dialogue."""

    cut_id: str
    duration_s: float
    grid: FrameGrid
    user: ChannelView
    agent: ChannelView
    text_only: bool = False  # its sound says nothing


def find_cut(data: str, *, cut_id: str | None = None, index: int = 0) -> Cut:
    """Find a cut of a Shar or a blend by its id, or else by its place.

    Raises :class:`DataError` if there is none, or data is missing or broken.
    """
    ids: list[str] = []
    for ref in chain.from_iterable(part.refs() for part in find_parts([data])):
        if ref.cut.id == cut_id or (cut_id is None and len(ids) == index):
            return ref.load()
        ids.append(ref.cut.id)
    wanted = f"cut {index}, counted from 0," if cut_id is None else f"cut {cut_id!r}"
    near = _near(cut_id, ids) if cut_id else []
    hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise DataError(f"{data}: there is no {wanted} among its {counted(len(ids), 'cut')}{hint}")


def _near(name: str, ids: Sequence[str]) -> list[str]:
    """Return up to three ids that ``name`` may stand for: their end, a file's path, or a misspelling."""
    path = Path(name)
    ends = (name, "__".join(path.with_suffix("").parts))
    return [cut_id for cut_id in ids if cut_id.endswith(ends)][:3] or get_close_matches(name, ids)


def view_cut(cut: Cut, roles: Roles, frame_length_s: float = 0.08) -> CutView:
    """Load a cut and put its words on the frame grid.

    Raises :class:`DataError` if its audio can't be read.
    """
    turns = roles.turns(cut)
    grid = FrameGrid.of(cut.duration, frame_length_s, cut.sampling_rate)
    user = _view_channel(cut, RECORDING, USER, turns, grid)
    agent = _view_channel(cut, TARGET_AUDIO, AGENT, turns, grid)
    return CutView(cut.id, cut.duration, grid, user, agent, is_text_only(cut))


def _view_channel(cut: Cut, field: str, role: str, turns: Sequence[Turn], grid: FrameGrid) -> ChannelView:
    own = tuple(turn for turn in turns if turn.role == role)
    tokenizer = WordTokenizer()
    channel = build_text_channel(own, grid, tokenizer)
    words_T = tuple(tokenizer.word(token_id) for token_id in channel.tokens_T.tolist())
    recording = cut.recording if field == RECORDING else (cut.custom or {}).get(field)
    audio_S = None if recording is None else load_audio(cut, field, recording.sampling_rate)
    rate_hz = 0 if recording is None else int(recording.sampling_rate)
    return ChannelView(role, audio_S, rate_hz, own, words_T, channel.num_dropped_tokens)
