from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from s2s_eval.turn_windows import Window, cut_window, trim_silence, turn_windows
from tests.s2s_eval.builders import RATE, Turn, tone


def test_a_window_starts_early_and_ends_where_the_next_begins() -> None:
    turns = [Turn("agent", 2.0, 1.0, "a"), Turn("agent", 6.0, 1.0, "b")]
    assert turn_windows(turns, 10.0, 0.4) == [Window(1.6, 5.6), Window(5.6, 10.0)]


def test_the_early_start_never_takes_from_the_turn_before() -> None:
    turns = [Turn("agent", 2.0, 1.0, "a"), Turn("agent", 3.1, 1.0, "b")]
    assert turn_windows(turns, 5.0, 0.4) == [Window(1.6, 3.0), Window(3.0, 5.0)]


def test_no_turn_no_window() -> None:
    assert turn_windows([], 5.0, 0.4) == []


def test_a_window_past_the_audio_is_empty() -> None:
    [window] = turn_windows([Turn("agent", 9.0, 1.0, "a")], 5.0, 0.4)
    assert len(cut_window(tone(5.0), RATE, window)) == 0


def test_a_turn_that_began_before_the_audio_is_heard_from_its_start() -> None:
    turns = [Turn("agent", -0.5, 2.0, "a"), Turn("agent", 4.0, 1.0, "b")]
    [first, _] = turn_windows(turns, 6.0, 0.4)
    assert len(cut_window(tone(6.0), RATE, first)) == round(3.6 * RATE)


@given(
    st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 5)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_windows_never_overlap_and_hold_their_turns_start(spans: list[tuple[float, float]], early_s: float) -> None:
    turns = [Turn("agent", start, duration, "x") for start, duration in sorted(spans)]
    windows = turn_windows(turns, 60.0, early_s)
    for turn, window in zip(turns, windows, strict=True):
        assert 0 <= window.start_s <= turn.start_s
    for before, after in pairwise(windows):
        assert before.end_s == after.start_s
        assert before.start_s <= before.end_s


def test_silence_around_a_sound_is_trimmed_to_a_margin() -> None:
    quiet = np.zeros(2 * RATE, np.float32)
    trimmed = trim_silence(np.concatenate([quiet, tone(1.0), quiet]), RATE, -50)
    assert abs(len(trimmed) / RATE - 1.4) < 0.03


def test_a_click_or_a_whisper_of_noise_is_silence() -> None:
    click = np.zeros(RATE, np.float32)
    click[100:150] = 1.0
    assert len(trim_silence(click, RATE, -50)) == 0
    assert len(trim_silence(tone(1.0, level=0.003), RATE, -50)) == 0
    assert len(trim_silence(tone(1.0, level=0.03), RATE, -50)) == RATE
    assert len(trim_silence(np.zeros(0, np.float32), RATE, -50)) == 0
