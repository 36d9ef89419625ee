"""A cut as a picture. Shapes: ``S`` samples, ``T`` frames (80 ms)."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2s_data.plotting import AGENT_COLOUR, USER_COLOUR, figure
from s2s_data.show.view import ChannelView, CutView

_INCHES_A_SECOND = 2.0  # a frame is then as wide as an upright letter is high
_MAX_INCHES = 60.0
_POINTS_A_SECOND = 250
_MARKS = {"BOS": "lightgreen", "EOS": "lightcoral"}
_COLOURS = {"user": USER_COLOUR, "agent": AGENT_COLOUR}


def write_picture(view: CutView, path: Path) -> None:
    """Write both waveforms with their turns, and the words on the frame grid, as an image.

    Raises :class:`DataError` if matplotlib isn't installed.
    """
    drawn = figure(min(_MAX_INCHES, max(8.0, _INCHES_A_SECOND * view.duration_s)), 6.5)
    axes = drawn.subplots(4, 1, sharex=True, height_ratios=(2, 1, 1, 2))
    for channel, waveform, words in ((view.user, axes[0], axes[1]), (view.agent, axes[3], axes[2])):
        _draw_waveform(waveform, channel)
        _draw_words(words, channel, view)
    axes[0].set_xlim(0, view.duration_s)
    axes[3].set_xlabel("seconds")
    drawn.suptitle(f"{view.cut_id}: {view.grid.num_frames} frames; words stand for their tokens")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=80)


def _draw_waveform(axes: Any, channel: ChannelView) -> None:
    colour = _COLOURS[channel.role]
    if channel.audio_S is None:
        axes.text(0.5, 0.5, "no audio, codes alone", transform=axes.transAxes, ha="center")
    else:
        times_s, low, high = _envelope(channel.audio_S, channel.sample_rate_hz)
        axes.fill_between(times_s, low, high, color=colour, linewidth=0.5)
        peak = float(max(high.max(), -low.min(), 1e-3))
        axes.set_ylim(-1.1 * peak, 1.6 * peak)  # room for the text
    for turn in channel.turns:
        axes.axvspan(turn.start_s, turn.end_s, color=colour, alpha=0.15, linewidth=0)
        axes.text(turn.start_s, 0.97, f" {turn.text}", transform=axes.get_xaxis_transform(), va="top", clip_on=True)
    rate = f", {channel.sample_rate_hz} Hz" if channel.sample_rate_hz else ""
    axes.set_ylabel(f"{channel.role}{rate}")


def _draw_words(axes: Any, channel: ChannelView, view: CutView) -> None:
    frame_s = view.grid.frame_length_s
    axes.vlines(np.arange(len(channel.words_T)) * frame_s, 0, 1, color="lightgrey", linewidth=0.5)
    for frame, word in enumerate(channel.words_T):
        if word == "PAD":
            continue
        start_s = frame * frame_s
        colour = _MARKS.get(word, _COLOURS[channel.role])
        axes.axvspan(start_s, start_s + frame_s, facecolor=colour, edgecolor="grey", linewidth=0.5, alpha=0.5)
        axes.text(start_s + frame_s / 2, 0.5, word, rotation=90, ha="center", va="center", fontsize=8)
    axes.set_ylim(0, 1)
    axes.set_yticks([])
    axes.set_ylabel(f"{channel.role}'s\ntokens")


def _envelope(
    audio_S: npt.NDArray[np.float32], rate_hz: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return times in seconds, and the lowest and highest samples around them."""
    hop = max(1, rate_hz // _POINTS_A_SECOND)
    num_points = max(1, len(audio_S) // hop)
    blocks = audio_S[: num_points * hop].reshape(num_points, -1)
    times_s = (np.arange(num_points) + 0.5) * hop / rate_hz
    return times_s, blocks.min(axis=1), blocks.max(axis=1)
