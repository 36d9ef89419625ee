"""Turn-taking of dialogues made of tones, whose times are known."""

from typing import Any

import numpy as np
import pytest

from s2s_eval.batch_scoring import score_batch
from s2s_eval.config import ScoringConfig
from s2s_eval.dialogue_scores import DialogueScore, mean_latency_s, validation_metrics
from s2s_eval.speech_segments import speech_segments
from tests.s2s_eval.builders import RATE, sounding, tone, tone_dialogue

BLOCK_S = 0.02  # times are known to this
Spans = list[tuple[float, float]]
Turns = list[tuple[str, float, float]]

QUESTION: Turns = [("user", 1.0, 3.0), ("agent", 3.5, 5.0)]
TWO_QUESTIONS: Turns = [*QUESTION, ("user", 6.0, 8.0), ("agent", 8.2, 9.0)]
INTERRUPTED: Turns = [("user", 0.0, 1.0), ("agent", 1.5, 4.5), ("user", 4.0, 6.0), ("agent", 6.5, 8.0)]
BACKCHANNEL: Turns = [("user", 0.0, 1.0), ("agent", 1.5, 8.0), ("user", 4.0, 4.4)]


def dialogue(turns: Turns, speech: Spans, duration_s: float = 10.0, **options: Any) -> DialogueScore:
    batch, output = tone_dialogue(turns, speech, duration_s, **options)
    [scored] = score_batch("d", batch, output, ScoringConfig(), None)
    return scored.score


def metrics_of(turns: Turns, speech: Spans, duration_s: float = 10.0) -> dict[str, float]:
    return validation_metrics([dialogue(turns, speech, duration_s)], has_asr=False)


class TestSegments:
    @pytest.mark.parametrize("rate", [16000, 22050, 24000, 8000])
    def test_are_where_the_sound_is(self, rate: int) -> None:
        found = speech_segments(sounding([(1.0, 2.0), (3.0, 4.5)], 6.0, rate), rate, -50)
        np.testing.assert_allclose(found, [(1.0, 2.0), (3.0, 4.5)], atol=BLOCK_S)

    def test_pauses_are_bridged_and_longer_ones_not(self) -> None:
        assert len(speech_segments(sounding([(1.0, 2.0), (2.44, 3.0)], 4.0), RATE, -50)) == 1
        assert len(speech_segments(sounding([(1.0, 2.0), (2.54, 3.0)], 4.0), RATE, -50)) == 2

    def test_clicks_are_dropped_even_close_to_speech(self) -> None:
        [found] = speech_segments(sounding([(0.7, 0.74), (1.0, 2.0), (2.3, 2.34)], 4.0), RATE, -50)
        np.testing.assert_allclose(found, (1.0, 2.0), atol=BLOCK_S)

    def test_a_word_with_a_stop_in_it_is_one(self) -> None:
        [found] = speech_segments(sounding([(1.0, 1.06), (1.14, 1.2)], 2.0), RATE, -50)
        np.testing.assert_allclose(found, (1.0, 1.2), atol=BLOCK_S)

    def test_quiet_and_nothing(self) -> None:
        assert speech_segments(tone(1.0, level=0.003), RATE, -50) == []
        assert speech_segments(np.zeros(0, np.float32), RATE, -50) == []


class TestResponses:
    def test_latency(self) -> None:
        metrics = metrics_of(TWO_QUESTIONS, [(3.2, 4.0), (8.8, 9.5)])
        assert metrics["val_latency_s_mean"] == pytest.approx(0.5, abs=BLOCK_S)
        assert metrics["val_latency_s_median_d"] == pytest.approx(0.5, abs=BLOCK_S)
        assert metrics["val_latency_s_p10"] == pytest.approx(0.26, abs=BLOCK_S)
        assert metrics["val_latency_s_p90"] == pytest.approx(0.74, abs=BLOCK_S)
        assert metrics["ref_latency_s_median_d"] == pytest.approx(0.35)
        assert metrics["val_missed_turns"] == 0
        assert metrics["val_talk_over"] == 0

    def test_an_early_start_has_a_negative_latency(self) -> None:
        score = dialogue(QUESTION, [(2.7, 4.0)])
        assert mean_latency_s(score) == pytest.approx(-0.3, abs=BLOCK_S)
        assert score.talk_over_s == pytest.approx(0.3, abs=BLOCK_S)

    def test_too_early_is_no_answer_but_talk_over(self) -> None:
        metrics = metrics_of(QUESTION, [(2.0, 4.0)])
        assert metrics["val_missed_turns"] == 100
        assert "val_latency_s_mean" not in metrics
        assert metrics["val_talk_over"] == pytest.approx(50, abs=1)

    def test_an_answer_after_the_next_user_turn_is_missed_for_the_first(self) -> None:
        score = dialogue(TWO_QUESTIONS, [(6.4, 7.0), (8.5, 9.5)])
        latencies = [response.latency_s for response in score.responses]
        assert latencies == [None, pytest.approx(0.5, abs=BLOCK_S)]
        assert validation_metrics([score], has_asr=False)["val_missed_turns"] == 50
        assert score.talk_over_s == pytest.approx(0.6, abs=BLOCK_S)

    def test_the_first_answer_counts(self) -> None:
        assert mean_latency_s(dialogue(QUESTION, [(3.4, 4.0), (5.0, 6.0)])) == pytest.approx(0.4, abs=BLOCK_S)

    def test_an_agent_that_never_speaks(self) -> None:
        metrics = metrics_of(INTERRUPTED, [])
        assert metrics["val_missed_turns"] == 100
        assert metrics["val_talk_over"] == 0
        assert not [name for name in metrics if "barge" in name or "false_stops" in name or "val_latency" in name]

    def test_no_audio_at_all(self) -> None:
        score = dialogue(QUESTION, [], duration_s=0.0)
        assert score.generated_speech == []
        assert [response.latency_s for response in score.responses] == [None]

    def test_an_agent_that_always_speaks_answers_nothing_and_never_yields(self) -> None:
        metrics = metrics_of(TWO_QUESTIONS, [(0.0, 10.0)])
        assert metrics["val_missed_turns"] == 100
        assert metrics["val_barge_in_success"] == 0
        assert metrics["val_barge_ins"] == 2
        assert "val_barge_in_stop_s_median" not in metrics
        assert metrics["val_talk_over"] == 0  # it didn't begin in the user's turn: that is what barge-ins are for

    def test_user_turns_without_an_answer_between_are_one(self) -> None:
        turns: Turns = [("user", 1.0, 2.0), ("user", 3.0, 4.0), ("agent", 4.5, 5.0)]
        score = dialogue(turns, [(2.3, 2.6), (4.8, 5.5)])
        [response] = score.responses
        assert response.user_end_s == 4.0
        assert response.latency_s == pytest.approx(0.8, abs=BLOCK_S)
        assert score.user_speech_s == pytest.approx(2.0)
        assert score.talk_over_s == 0  # in the user's pause

    def test_what_the_reference_does_not_answer_asks_for_nothing(self) -> None:
        metrics = metrics_of([("agent", 0.5, 2.0), ("user", 3.0, 4.0)], [(0.5, 2.0)])
        assert "val_missed_turns" not in metrics
        assert metrics["val_talk_over"] == 0

    def test_overlapping_reference_turns(self) -> None:
        turns: Turns = [("user", 1.0, 4.0), ("agent", 2.0, 2.3), ("user", 3.0, 5.0), ("agent", 4.8, 6.0)]
        score = dialogue(turns, [(5.3, 6.0)])
        [response] = score.responses  # "mhm" at 2.0 is no answer
        assert response.user_end_s == 5.0
        assert response.reference_latency_s == pytest.approx(-0.2)
        assert score.user_speech_s == pytest.approx(4.0)

    def test_turns_without_length_and_no_turns(self) -> None:
        assert dialogue([("user", 1.0, 1.0), ("agent", 2.0, 2.0)], [(2.0, 3.0)]).responses == []
        assert validation_metrics([dialogue([], [(2.0, 3.0)])], has_asr=False) == {}

    def test_over_dialogues_at_once_not_the_mean_of_means(self) -> None:
        one = dialogue(QUESTION, [(3.1, 4.0)], cut_id="a")
        two = dialogue(TWO_QUESTIONS, [(3.4, 4.0), (8.7, 9.5)], cut_id="b")
        metrics = validation_metrics([one, two], has_asr=False)
        assert metrics["val_latency_s_mean"] == pytest.approx((0.1 + 0.4 + 0.7) / 3, abs=BLOCK_S)
        latencies = [r.latency_s for score in (one, two) for r in score.responses if r.latency_s is not None]
        assert len(latencies) == 3
        assert metrics["val_latency_s_p90"] == np.quantile(latencies, 0.9)


class TestBargeIns:
    def test_the_agent_stops(self) -> None:
        score = dialogue(INTERRUPTED, [(1.5, 5.0), (6.5, 8.0)])
        [barge_in] = score.barge_ins
        assert (barge_in.start_s, barge_in.kind, barge_in.success) == (4.0, "yield", True)
        assert barge_in.stop_s == pytest.approx(5.0, abs=BLOCK_S)
        metrics = validation_metrics([score], has_asr=False)
        assert metrics["val_barge_in_success"] == metrics["val_barge_in_success_d"] == 100
        assert metrics["val_barge_in_stop_s_median"] == pytest.approx(1.0, abs=BLOCK_S)
        assert metrics["val_barge_ins"] == 1
        assert "val_false_stops" not in metrics

    def test_the_agent_stops_too_late(self) -> None:
        metrics = metrics_of(INTERRUPTED, [(1.5, 5.8), (6.5, 8.0)])
        assert metrics["val_barge_in_success"] == 0
        assert metrics["val_barge_in_stop_s_median"] == pytest.approx(1.8, abs=BLOCK_S)

    def test_a_breath_is_no_stop(self) -> None:
        assert metrics_of(INTERRUPTED, [(1.5, 4.4), (4.8, 8.0)])["val_barge_in_success"] == 0

    def test_an_agent_that_the_reference_has_silent_must_stop_too(self) -> None:
        [barge_in] = dialogue(TWO_QUESTIONS, [(5.0, 6.7)]).barge_ins
        assert (barge_in.kind, barge_in.success) == ("yield", True)

    def test_both_starting_at_once_is_no_barge_in(self) -> None:
        assert dialogue(INTERRUPTED, [(3.9, 6.0)]).barge_ins == []

    def test_going_on_through_a_backchannel_is_right(self) -> None:
        metrics = metrics_of(BACKCHANNEL, [(1.5, 8.0)])
        assert metrics["val_false_stops"] == 0
        assert "val_barge_ins" not in metrics
        assert "val_barge_in_success" not in metrics

    def test_stopping_for_a_backchannel_is_wrong(self) -> None:
        assert metrics_of(BACKCHANNEL, [(1.5, 4.6), (5.4, 8.0)])["val_false_stops"] == 100
        assert metrics_of(BACKCHANNEL, [(1.5, 4.6), (5.0, 8.0)])["val_false_stops"] == 0  # a pause

    def test_where_the_audio_ends_there_is_no_telling(self) -> None:
        assert dialogue(INTERRUPTED, [(1.5, 5.0)], duration_s=5.0).barge_ins == []
        [barge_in] = dialogue(INTERRUPTED, [(1.5, 6.0)], duration_s=6.0).barge_ins
        assert (barge_in.stop_s, barge_in.success) == (None, False)

    def test_the_time_to_stop_is_set(self) -> None:
        batch, output = tone_dialogue(INTERRUPTED, [(1.5, 5.0)], 10.0)
        [scored] = score_batch("d", batch, output, ScoringConfig(barge_in_stop_s=0.8), None)
        assert [barge_in.success for barge_in in scored.score.barge_ins] == [False]

    def test_segments_of_one_utterance_interrupt_once(self) -> None:
        turns: Turns = [("agent", 0.0, 1.2), ("user", 1.0, 2.0), ("user", 2.0, 3.0), ("user", 3.2, 4.0)]
        assert len(dialogue(turns, [(0.0, 6.0)]).barge_ins) == 1
