"""`s2s-data stats`: dialogues whose numbers were worked out by hand."""

import json
import random
from bisect import bisect_left
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

from s2s_data import DataError
from s2s_data.cli import main
from s2s_data.roles import Roles
from s2s_data.stats import CorpusStats, corpus_stats, measure, summarise
from tests.s2s_data.broken_corpus import TurnSpec, make, write

ROLES = Roles.of(["user"], ["agent"])
MEDIAN = 3

BARGE_IN: list[TurnSpec] = [
    ("user", 0.5, 1.5, "a b c"),
    ("agent", 2.4, 2.0, "d e f g"),  # answers after 0.4 s, and is barged in
    ("user", 4.0, 2.0, "h i"),  # while the agent speaks on for 0.4 s
    ("agent", 5.0, 0.2, "mm"),  # starts too early: the user speaks on for 1 s
    ("agent", 6.5, 1.0, "j"),  # answers after 0.5 s
    ("agent", 8.0, 1.0, "k"),  # goes on, which is no answer
]


def without_audio(cut_id: str, duration_s: float, turns: list[TurnSpec]) -> MonoCut:
    num_samples = round(duration_s * 16000)
    recording = Recording(cut_id, sources=[], sampling_rate=16000, num_samples=num_samples, duration=duration_s)
    cut = MonoCut(cut_id, start=0, duration=duration_s, channel=0, recording=recording)
    cut.supervisions = [
        SupervisionSegment(f"{cut_id}-{number}", cut_id, start, length, text=text, speaker=speaker)
        for number, (speaker, start, length, text) in enumerate(turns)
    ]
    return cut


def stats_of(cuts: list[MonoCut]) -> CorpusStats:
    return summarise(measure(cuts, ROLES, lambda text: len(text.split())))


def test_a_dialogue_with_a_barge_in() -> None:
    stats = stats_of([without_audio("a", 10.0, BARGE_IN)])
    assert (stats.num_dialogues, stats.hours) == (1, 10 / 3600)
    assert (stats.user.num_turns, stats.user.num_tokens) == (2, 5)
    assert (stats.agent.num_turns, stats.agent.num_tokens) == (4, 7)
    assert stats.user.speech_s == pytest.approx(3.5)
    assert stats.agent.speech_s == pytest.approx(4.2)
    assert stats.user.tokens_per_s == pytest.approx(5 / 3.5)
    assert stats.overlap_s == pytest.approx(0.4 + 0.2)
    assert stats.silence_s == pytest.approx(10 - 3.5 - 4.2 + 0.6)
    assert stats.agent.response_s is not None
    assert stats.agent.response_s.count == 2
    assert stats.agent.response_s.mean == pytest.approx(0.45)
    assert stats.user.response_s is None
    assert stats.user.interruption_s is not None
    assert stats.user.interruption_s.quantiles[MEDIAN] == pytest.approx(0.4)
    assert stats.agent.interruption_s is not None
    assert stats.agent.interruption_s.count == 1
    assert stats.agent.interruption_s.mean == pytest.approx(1.0)


TURNS = st.lists(st.tuples(st.sampled_from(["user", "agent"]), st.floats(0, 9), st.floats(0.01, 5), st.just("word")))


@given(TURNS)
def test_all_of_a_dialogue_is_silence_or_speech_of_one_or_both(turns: list[TurnSpec]) -> None:
    stats = stats_of([without_audio("a", 8.0, turns)])
    sums_s = stats.user.speech_s + stats.agent.speech_s - stats.overlap_s + stats.silence_s
    assert sums_s == pytest.approx(8.0)
    assert min(stats.overlap_s, stats.silence_s) >= -1e-9


def test_buckets_hold_equally_much_audio() -> None:
    durations_s = random.Random(0).sample([0.1 * tenths for tenths in range(10, 300)], 200)
    cuts = [without_audio(f"d{number}", duration_s, []) for number, duration_s in enumerate(durations_s)]
    bins_s = summarise(measure(cuts, ROLES, len), num_buckets=5).bucket_duration_bins
    assert len(bins_s) == 4
    held_s = [0.0] * 5
    for duration_s in durations_s:
        held_s[bisect_left(bins_s, duration_s)] += duration_s
    assert min(held_s) > 0.8 * max(held_s)


@pytest.mark.parametrize(("num_dialogues", "most_bins"), [(39, 0), (100, 4), (1000, 29)])
def test_little_data_has_few_buckets(num_dialogues: int, most_bins: int) -> None:
    draw = random.Random(1)
    cuts = [without_audio(f"d{number}", draw.uniform(3, 12), []) for number in range(num_dialogues)]
    bins_s = stats_of(cuts).bucket_duration_bins
    assert max(1, most_bins) // 2 <= len(bins_s) <= most_bins


def test_no_bound_is_at_the_longest_duration() -> None:
    cuts = [without_audio(f"d{number}", 2.0 if number < 20 else 8.0, []) for number in range(100)]
    assert all(bound_s < 8.0 for bound_s in stats_of(cuts).bucket_duration_bins)


def test_command_prints_numbers_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shars = [str(write(tmp_path / name, [make(f"{name}-{number}") for number in range(3)])) for name in "ab"]
    blend = tmp_path / "blend.yaml"
    blend.write_text("".join(f"- {{type: lhotse_shar, shar_path: {shar}}}\n" for shar in shars))
    assert main(["stats", str(blend), "--json", str(tmp_path / "stats.json")]) == 0
    of_blend, err = capsys.readouterr()
    assert err == ""
    assert main(["stats", *shars]) == 0
    assert capsys.readouterr().out == of_blend
    rows = [line.split() for line in of_blend.splitlines()]
    assert ["dialogues", "6"] in rows
    assert ["user", "speaks", "7.2", "s", "30.0", "%"] in rows
    assert ["agent", "answers", "after", "6", *["0.40"] * 8] in rows
    written = json.loads((tmp_path / "stats.json").read_text())
    assert written["agent"]["response_s"]["count"] == 6


def test_nothing_is_no_corpus(tmp_path: Path) -> None:
    CutSet([]).to_file(tmp_path / "cuts.000000.jsonl.gz")
    with pytest.raises(DataError, match="there is no cut in it"):
        corpus_stats(str(tmp_path), ROLES)


def test_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = str(write(tmp_path / "shar", [make(f"d{number}") for number in range(3)]))
    assert main(["stats", shar, "--plots", str(tmp_path / "plots")]) == 0
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [path.name for path in pictures] == ["durations.png", "gaps.png", "turns.png", "words.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert str(pictures[0]) in capsys.readouterr().out
