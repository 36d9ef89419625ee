"""A cut as text. Shapes: ``T`` frames (80 ms)."""

from collections.abc import Iterator

import numpy as np

from s2s_data.batch import Turn
from s2s_data.show.view import ChannelView, CutView

LEGEND = "a column is a frame: [ BOS, w a word (it stands for its tokens), ] EOS, . PAD"
_BARS = " ▁▂▃▄▅▆▇█"
_BAR_DB = 7.0  # a step of the bars; the lowest is at -56 dB
_SYMBOLS = {"PAD": ".", "BOS": "[", "EOS": "]"}
_NAME_WIDTH = 6


def as_text(view: CutView, width: int = 100) -> str:
    """Return the levels and the words of both channels by frame, in rows of ``width``, and the turns."""
    grid = view.grid
    rows = [_levels(view.user, view), _symbols(view.user), _symbols(view.agent), _levels(view.agent, view)]
    names = ("user", "", "", "agent")
    step = max(1, width - _NAME_WIDTH)
    kind = ", text alone" if view.text_only else ""
    lines = [f"cut {view.cut_id}: {view.duration_s:.2f} s, {grid.num_frames} frames{kind}", LEGEND]
    for first in range(0, grid.num_frames, step):
        lines += ["", f"{'':{_NAME_WIDTH}}|{first * grid.frame_length_s:.2f} s"]
        lines += [
            f"{name:{_NAME_WIDTH}}{row[first : first + step]}".rstrip() for name, row in zip(names, rows, strict=True)
        ]
    return "\n".join([*lines, "", *_turns(view)])


def _levels(channel: ChannelView, view: CutView) -> str:
    if channel.audio_S is None:
        return "no audio, codes alone".ljust(view.grid.num_frames)
    hop = round(view.grid.frame_length_s * channel.sample_rate_hz)
    padded_S = np.zeros(hop * view.grid.num_frames, np.float32)
    kept_S = channel.audio_S[: len(padded_S)]
    padded_S[: len(kept_S)] = kept_S
    rms_T = np.sqrt(np.mean(np.square(padded_S.reshape(-1, hop)), axis=1))
    steps_T = len(_BARS) - 1 + np.floor(20 * np.log10(np.maximum(rms_T, 1e-9)) / _BAR_DB)
    return "".join(_BARS[int(step)] for step in np.clip(steps_T, 0, len(_BARS) - 1))


def _symbols(channel: ChannelView) -> str:
    return "".join(_SYMBOLS.get(word, "w") for word in channel.words_T)


def _turns(view: CutView) -> Iterator[str]:
    for turn in sorted([*view.user.turns, *view.agent.turns], key=_start_s):
        first, last = view.grid.frame_at(turn.start_s), view.grid.frame_at(turn.end_s)
        yield f"{turn.role:{_NAME_WIDTH}}{turn.start_s:6.2f}-{turn.end_s:.2f} s, frames {first}-{last}: {turn.text}"
    for channel in (view.user, view.agent):
        if channel.num_dropped:
            yield f"{channel.num_dropped} words of the {channel.role} don't fit their turns and are cut"


def _start_s(turn: Turn) -> float:
    return turn.start_s
