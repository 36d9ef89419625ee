import jiwer
import pytest
import sacrebleu

from s2s_eval.dialogue_scores import one_per_dialogue, shuffled_bleu, validation_metrics
from s2s_eval.metrics import bleu_signature, corpus_bleu, corpus_wer, empty_rate
from s2s_eval.text import normalize
from tests.s2s_eval.builders import scored

HYPOTHESES = ["The capital of France is Paris.", "It's 12 o'clock.", "", "two plus two is for"]
REFERENCES = ["the capital of France is Paris", "It is twelve o'clock", "Hello there!", "Two plus two is four."]


def test_normalising_makes_spoken_and_written_numbers_equal() -> None:
    assert normalize("Twelve minus four is EIGHT!") == normalize("12 minus 4 is 8")
    assert normalize("Um... nine, ten.") == "910"  # a known property: no number lists in a corpus


def test_bleu_is_sacrebleus_on_normalised_text() -> None:
    expected = sacrebleu.corpus_bleu(
        [normalize(text) for text in HYPOTHESES], [[normalize(text) for text in REFERENCES]], lowercase=True
    )
    assert corpus_bleu(HYPOTHESES, REFERENCES) == pytest.approx(expected.score)
    assert "case:lc" in bleu_signature()
    assert "version:" in bleu_signature()


def test_wer_is_jiwers_on_normalised_text() -> None:
    expected = jiwer.wer([normalize(text) for text in REFERENCES], [normalize(text) for text in HYPOTHESES])
    assert corpus_wer(HYPOTHESES, REFERENCES) == pytest.approx(100 * expected)
    assert corpus_wer(["a b c", ""], ["a b d", "x"]) == pytest.approx(50.0)


def test_perfect_and_empty() -> None:
    assert corpus_bleu(REFERENCES, REFERENCES) == pytest.approx(100.0)
    assert corpus_bleu([""] * 4, REFERENCES) == 0.0
    assert corpus_wer([""] * 4, REFERENCES) == 100.0
    assert corpus_wer(["a", "b"], ["Um.", ""]) is None
    assert corpus_bleu([], []) is None


def test_a_reference_without_a_word_is_left_out() -> None:
    assert corpus_bleu([*REFERENCES, "something"], [*REFERENCES, "um"]) == pytest.approx(100.0)


def test_empty_rate_counts_hypotheses_without_a_word() -> None:
    assert empty_rate(["hi", "", "...", "yes"]) == 50.0
    assert empty_rate([]) is None


RIGHT = [("Two plus two is four.", "two plus two is four"), ("The sky is blue today", "The sky is blue today.")]
WRONG = [("", "The grass is green in May"), ("hello again my friend", "The day after Monday is Tuesday")]


class TestValidationMetrics:
    def test_names_and_values(self) -> None:
        dialogues = [scored("seen", "a", RIGHT, ceiling="no"), scored("new", "b", WRONG)]
        metrics = validation_metrics(dialogues, has_asr=True)
        assert metrics["val_asr_bleu_seen"] == pytest.approx(100)
        assert metrics["val_txt_bleu_seen"] == pytest.approx(100)
        assert metrics["val_asr_wer_seen"] == 0
        assert metrics["val_empty_rate_new"] == 50
        assert metrics["val_empty_rate_seen"] == 0
        assert metrics["ceiling_asr_bleu_seen"] < 1
        assert "ceiling_asr_bleu_new" not in metrics  # not transcribed
        assert "shuffled_asr_bleu_new" not in metrics  # one dialogue has no other
        pairs = RIGHT + WRONG
        pooled = corpus_bleu([asr for asr, _ in pairs], [ref for _, ref in pairs])
        assert metrics["val_asr_bleu"] == pytest.approx(pooled)
        assert metrics["val_asr_bleu"] != pytest.approx(
            (metrics["val_asr_bleu_seen"] + metrics["val_asr_bleu_new"]) / 2
        )

    def test_without_asr_only_texts_are_scored(self) -> None:
        metrics = validation_metrics([scored("seen", "a", RIGHT)], has_asr=False)
        assert set(metrics) == {"val_txt_bleu", "val_txt_bleu_seen"}

    def test_no_dialogue_no_metric(self) -> None:
        assert validation_metrics([], has_asr=True) == {}

    def test_shuffled_compares_with_another_dialogue(self) -> None:
        texts = [
            "the capital of italy is rome you know",
            "seven plus eight makes fifteen of course",
            "grass grows green when rain has come",
        ]
        dialogues = [scored("d", str(i), [(text, text)]) for i, text in enumerate(texts)]
        floor = shuffled_bleu(dialogues)
        assert floor is not None
        assert floor < 5
        same = [scored("d", str(i), [(texts[0], texts[0])]) for i in range(3)]
        assert shuffled_bleu(same) == pytest.approx(100)

    def test_dialogues_that_two_ranks_scored_count_once(self) -> None:
        a, b, c = (scored("d", name, RIGHT) for name in "abc")
        kept = one_per_dialogue([[b, a], [a, c], []])
        assert [dialogue.cut_id for dialogue in kept] == ["a", "b", "c"]

    def test_order_of_ranks_changes_nothing(self) -> None:
        dialogues = [scored("d", str(i), RIGHT if i % 3 else WRONG) for i in range(7)]
        one = validation_metrics(one_per_dialogue([dialogues]), has_asr=True)
        many = validation_metrics(one_per_dialogue([dialogues[4:], [], dialogues[:4]]), has_asr=True)
        assert one == many
