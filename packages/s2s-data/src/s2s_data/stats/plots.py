"""A corpus in pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from s2s_data.plotting import AGENT_COLOUR, USER_COLOUR, figure
from s2s_data.stats.corpus import CorpusStats
from s2s_data.stats.measure import Measured, Side

_NUM_BARS = 40


def write_plots(measured: Measured, stats: CorpusStats, folder: Path) -> list[Path]:
    """Write a PNG of each distribution into ``folder`` and return their paths.

    Raises :class:`DataError` if matplotlib isn't installed.
    """
    user, agent = measured.user, measured.agent
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _histogram(
            folder / "durations.png",
            {"dialogues": measured.durations_s},
            "duration of a dialogue, seconds; lines separate the buckets",
            stats.bucket_duration_bins,
        ),
        _histogram(folder / "turns.png", {"user": user.turn_s, "agent": agent.turn_s}, "duration of a turn, seconds"),
        _histogram(
            folder / "gaps.png",
            {"user": _gaps_s(user), "agent": _gaps_s(agent)},
            "start of a turn after the other side's end, seconds; below 0 both speak",
            [0.0],
        ),
        _histogram(folder / "words.png", {"user": _rates(user), "agent": _rates(agent)}, "words a second, in a turn"),
    ]


def _gaps_s(side: Side) -> list[float]:
    return [*side.response_s, *(-overlap_s for overlap_s in side.interrupted_s)]


def _rates(side: Side) -> list[float]:
    return [count / turn_s for count, turn_s in zip(side.num_tokens, side.turn_s, strict=True) if turn_s > 0]


def _histogram(path: Path, series: Mapping[str, Sequence[float]], title: str, lines: Sequence[float] = ()) -> Path:
    drawn = figure(7, 3)
    axes = drawn.subplots()
    colours = [AGENT_COLOUR if name == "agent" else USER_COLOUR for name in series]
    axes.hist(list(series.values()), bins=_NUM_BARS, color=colours, label=list(series))
    for place in lines:
        axes.axvline(place, color="grey", linewidth=0.8)
    axes.set_xlabel(title)
    axes.set_ylabel("count")
    axes.legend()
    drawn.savefig(path, dpi=100)
    return path
