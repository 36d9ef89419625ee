"""A corpus in numbers, as text."""

from tabulate import tabulate

from s2s_data.stats.corpus import QUANTILES, CorpusStats, Quantiles, SideStats


def as_text(stats: CorpusStats) -> str:
    """Return two tables and the config line for bucketing."""
    total_s = stats.hours * 3600
    sums = [
        ("dialogues", stats.num_dialogues, ""),
        ("hours", f"{stats.hours:.3f}", ""),
        *_of_side("user", stats.user, total_s),
        *_of_side("agent", stats.agent, total_s),
        ("both speak", f"{stats.overlap_s:.1f} s", _share(stats.overlap_s, total_s)),
        ("nobody speaks", f"{stats.silence_s:.1f} s", _share(stats.silence_s, total_s)),
        ("barge-ins by the user", _count(stats.user.interruption_s), ""),
        ("agent starts too early", _count(stats.agent.interruption_s), ""),
        *([("beside them, text alone", str(stats.num_text_only), "")] if stats.num_text_only else []),
    ]
    spread = [
        ("dialogue", stats.duration_s),
        ("user's turn", stats.user.turn_s),
        ("agent's turn", stats.agent.turn_s),
        ("agent answers after", stats.agent.response_s),
        ("user answers after", stats.user.response_s),
        ("agent speaks on at a barge-in", stats.user.interruption_s),
    ]
    headers = ["seconds", "count", "mean", *(f"{round(100 * share)} %" for share in QUANTILES)]
    rows = [_row(name, quantiles) for name, quantiles in spread if quantiles is not None]
    return "\n\n".join([
        tabulate(sums, tablefmt="plain", colalign=("left", "right", "right"), disable_numparse=True),
        tabulate(rows, headers=headers, colalign=("left", *["right"] * (len(headers) - 1)), disable_numparse=True),
        f"bucket_duration_bins: {stats.bucket_duration_bins or 'none, the data is too little for buckets'}",
    ])  # fmt: skip


def _of_side(name: str, side: SideStats, total_s: float) -> list[tuple[str, str, str]]:
    rate = "" if side.tokens_per_s is None else f"{side.tokens_per_s:.2f} a second"
    return [
        (f"{name}'s turns", str(side.num_turns), ""),
        (f"{name} speaks", f"{side.speech_s:.1f} s", _share(side.speech_s, total_s)),
        (f"{name}'s words", str(side.num_tokens), rate),
    ]


def _row(name: str, values: Quantiles) -> list[str]:
    return [name, str(values.count), *(f"{value:.2f}" for value in (values.mean, *values.quantiles))]


def _share(part_s: float, total_s: float) -> str:
    return f"{100 * part_s / total_s:.1f} %"


def _count(values: Quantiles | None) -> str:
    return str(values.count if values else 0)
