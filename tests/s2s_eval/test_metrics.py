import math
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest
import sacrebleu
import torch

from s2s_eval.batch_scoring import score_batch
from s2s_eval.config import ScoringConfig
from s2s_eval.dialogue_scores import one_per_dialogue, shuffled_bleu, validation_metrics
from s2s_eval.metrics import (
    answer_accuracy,
    bleu_signature,
    contains,
    corpus_bleu,
    corpus_cer,
    corpus_wer,
    empty_rate,
)
from s2s_eval.quality import QualityScorer
from s2s_eval.speaker_similarity import SpeakerSimilarity
from s2s_eval.text import normalize
from tests.s2s_eval.builders import scored, tone_dialogue

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
    assert corpus_wer(["a b c", "x y", ""], ["a b d", "", "um"]) == pytest.approx(100.0)  # 1 wrong, 2 too many, of 3


def test_cer_is_jiwers_on_normalised_text() -> None:
    expected = jiwer.cer([normalize(text) for text in REFERENCES], [normalize(text) for text in HYPOTHESES])
    assert corpus_cer(HYPOTHESES, REFERENCES) == pytest.approx(100 * expected)
    assert corpus_cer(["abx"], ["Abc?"]) == pytest.approx(100 / 3)
    assert corpus_cer(["a"], ["..."]) is None


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
        assert metrics["val_asr_cer_seen"] == 0
        assert metrics["val_empty_rate_new"] == 50
        assert metrics["val_empty_rate"] == 25
        assert metrics["val_empty_rate_seen"] == 0
        assert metrics["ceiling_asr_bleu_seen"] < 1
        assert "ceiling_asr_bleu_new" not in metrics  # not transcribed
        assert "shuffled_asr_bleu_new" not in metrics  # one dialogue has no other
        pairs = RIGHT + WRONG
        pooled = corpus_bleu([asr for asr, _ in pairs], [ref for _, ref in pairs])
        assert metrics["val_asr_bleu"] == pytest.approx(pooled)
        assert metrics["val_asr_wer"] == corpus_wer([asr for asr, _ in pairs], [ref for _, ref in pairs])
        assert metrics["val_asr_cer"] == corpus_cer([asr for asr, _ in pairs], [ref for _, ref in pairs])
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

    def test_several_dialogues_of_one_id_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        one_per_dialogue([[scored("d", "x", RIGHT)], [scored("d", "x", RIGHT), scored("e", "x", WRONG)]])
        assert not caplog.messages
        one_per_dialogue([[scored("d", "x", [("a b", "a b")]), scored("d", "x", [("c", "c d")])]])
        assert "1 ids are those of several dialogues, such as d/x" in caplog.text

    def test_order_of_ranks_changes_nothing(self) -> None:
        dialogues = [scored("d", str(i), RIGHT if i % 3 else WRONG) for i in range(7)]
        one = validation_metrics(one_per_dialogue([dialogues]), has_asr=True)
        many = validation_metrics(one_per_dialogue([dialogues[4:], [], dialogues[:4]]), has_asr=True)
        assert one == many

    def test_a_dialogue_that_one_rank_scored_twice_counts_once(self) -> None:
        a, b = (scored("d", name, RIGHT) for name in "ab")
        assert one_per_dialogue([[a, b, a]]) == one_per_dialogue([[a], [b, a]]) == [a, b]


class TestSaid:
    """Does the agent say what it writes? The reference has no say."""

    def test_errors_are_of_the_speech_against_the_models_text(self) -> None:
        dialogue = scored("d", "a", [("the sky is blue", "two and two is four"), ("it is nine", "it is ten")])
        written = ["the sky is red", "it is nine"]
        turns = [replace(turn, generated_text=text) for turn, text in zip(dialogue.scored_turns, written, strict=True)]
        metrics = validation_metrics([replace(dialogue, scored_turns=turns)], has_asr=True)
        heard = ["the sky is blue", "it is 9"]
        assert metrics["val_said_wer"] == pytest.approx(100 * jiwer.wer([written[0], "it is 9"], heard))
        assert metrics["val_said_cer_d"] == pytest.approx(100 * jiwer.cer([written[0], "it is 9"], heard))

    def test_speech_without_text_is_an_error_and_nothing_at_all_is_none(self) -> None:
        dialogue = scored("d", "a", [("the sky", "x"), ("it is nine", "y"), ("", "z")])
        turns = [
            replace(t, generated_text=text) for t, text in zip(dialogue.scored_turns, ["the sky", "", ""], strict=True)
        ]
        assert validation_metrics([replace(dialogue, scored_turns=turns)], has_asr=True)["val_said_wer"] == 150
        silent = replace(dialogue, scored_turns=[replace(turn, asr="", generated_text="") for turn in turns])
        assert "val_said_wer" not in validation_metrics([silent], has_asr=True)


class TestAnswerAccuracy:
    @pytest.mark.parametrize(
        ("text", "value", "is_in"),
        [
            ("Seven plus five is twelve.", "12", True),
            ("It's 12!", "twelve", True),
            ("I like tennis", "ten", False),
            ("It is nineteen.", "nine", False),
            ("The capital is New York, I think", "new york", True),
            ("York is new", "New York", False),
            ("a new and old York", "New York", False),
            ("It is two hundred and five", "205", True),
            ("twelve dollars", "twelve", False),  # "$12", by the normaliser
            ("twelve dollars", "$12", True),
            ("", "twelve", False),
        ],
    )
    def test_whole_words_in_their_order(self, text: str, value: str, is_in: bool) -> None:
        assert contains(text, value) is is_in
        assert answer_accuracy([text], [value]) == 100 * is_in

    def test_of_other_languages(self) -> None:
        assert contains("Es sind Zwölf.", "zwölf", "de")
        assert not contains("Es sind 12.", "zwölf", "de")
        assert contains("答案是十二。", "十二", "zh")
        with pytest.raises(ValueError, match="language='xx'"):
            answer_accuracy(["a"], ["a"], "xx")

    def test_turns_without_a_value_do_not_count(self) -> None:
        assert answer_accuracy(["it is ten", "so", "nine", "um"], ["ten", None, "eight", "um"]) == 50
        assert answer_accuracy(["so", "um"], [None, "um"]) is None
        assert answer_accuracy([], []) is None

    def test_each_turn_counts_once_in_speech_text_and_ceiling(self) -> None:
        """Counted by hand: of 4 values in two sets, 3 are heard, 1 is written, and 1 of the 3 in a ceiling is there."""
        first = scored("seen", "a", [("it is four", "x"), ("ten", "x"), ("blue", "x"), ("so", "x")], ceiling="the ten")
        second = scored("new", "b", [("tennis", "x"), ("no value", "x")])
        values = iter(["four", "ten", "blue", None, "ten", None])
        dialogues = [
            replace(
                one,
                scored_turns=[
                    replace(turn, value=next(values), generated_text="4" if turn.asr == "it is four" else "")
                    for turn in one.scored_turns
                ],
            )
            for one in (first, second)
        ]
        found = {k: v for k, v in validation_metrics(dialogues, has_asr=True).items() if "answer_accuracy" in k}
        assert found == {
            "val_answer_accuracy": 75,
            "val_answer_accuracy_seen": 100,
            "val_answer_accuracy_new": 0,
            "val_answer_accuracy_text": 25,
            "val_answer_accuracy_text_seen": pytest.approx(100 / 3),
            "val_answer_accuracy_text_new": 0,
            "ceiling_answer_accuracy_seen": pytest.approx(100 / 3),
        }
        without_asr = validation_metrics(dialogues, has_asr=False)
        assert {name for name in without_asr if "answer" in name} == {name for name in found if "_text" in name}
        named_badly = [replace(one, dataset="text") for one in dialogues]
        with pytest.raises(ValueError, match="val_answer_accuracy_text of the data set 'text' is another metric's"):
            validation_metrics(named_badly, has_asr=True)


class TestStatistics:
    """Against torch, on all frames at once."""

    def test_accuracy_and_perplexity(self) -> None:
        torch.manual_seed(0)
        frames, vocabulary, codebooks, pad_id = [5, 0, 3], 7, 2, 0
        logits = [torch.randn(n, 1 + codebooks, vocabulary) for n in frames]
        labels = [torch.randint(0, 3, (n, 1 + codebooks)) for n in frames]
        nll = [
            torch.nn.functional.cross_entropy(x.transpose(1, 2), y, reduction="none")
            for x, y in zip(logits, labels, strict=True)
        ]
        hits = [x.argmax(-1) == y for x, y in zip(logits, labels, strict=True)]
        said = [y[:, 0] != pad_id for y in labels]
        statistics = {
            "frames": torch.tensor(frames),
            "text_nll": torch.stack([x[:, 0].sum() for x in nll]),
            "text_hits": torch.stack([x[:, 0].sum() for x in hits]),
            "tokens": torch.stack([x.sum() for x in said]),
            "token_nll": torch.stack([x[s, 0].sum() for x, s in zip(nll, said, strict=True)]),
            "token_hits": torch.stack([x[s, 0].sum() for x, s in zip(hits, said, strict=True)]),
            "code_nll": torch.stack([x[:, 1:].sum(0) for x in nll]),
            "code_hits": torch.stack([x[:, 1:].sum(0) for x in hits]),
        }
        dialogues = []
        for i in range(len(frames)):
            batch, output = tone_dialogue([], [], 1.0, cut_id=str(i))
            output["statistics"] = {name: rows[i : i + 1] for name, rows in statistics.items()}
            dialogues += [score for score, _ in score_batch("d", batch, output, ScoringConfig(), None)]
        metrics = validation_metrics(dialogues, has_asr=False)
        all_nll, all_hits, all_said = torch.cat(nll), torch.cat(hits).double(), torch.cat(said)
        expected = {
            "val_text_accuracy": 100 * all_hits[:, 0].mean(),
            "val_text_perplexity": all_nll[:, 0].mean().exp(),
            "val_token_accuracy": 100 * all_hits[all_said, 0].mean(),
            "val_token_perplexity": all_nll[all_said, 0].mean().exp(),
            "val_code_accuracy": 100 * all_hits[:, 1:].mean(),
            "val_code_perplexity": all_nll[:, 1:].mean().exp(),
        }
        expected |= {f"{name}_d": value for name, value in expected.items()}
        expected |= {f"val_code_accuracy_d_k{k}": 100 * all_hits[:, 1 + k].mean() for k in range(codebooks)}
        assert metrics == pytest.approx({name: float(value) for name, value in expected.items()})

    def test_without_frames_or_tokens_there_is_no_figure(self) -> None:
        batch, output = tone_dialogue([], [], 1.0)
        zeros = {name: torch.zeros(1) for name in ("text_nll", "text_hits", "tokens", "token_nll", "token_hits")}
        codes = {name: torch.zeros(1, 2) for name in ("code_nll", "code_hits")}
        for frames, names in [(0, set()), (4, {"text", "code"})]:
            output["statistics"] = {"frames": torch.tensor([frames]), **zeros, **codes}
            [scored_one] = score_batch("d", batch, output, ScoringConfig(), None)
            metrics = validation_metrics([scored_one.score], has_asr=False)
            assert {name.split("_")[1] for name in metrics} == names

    def test_a_perplexity_out_of_range_is_inf(self) -> None:
        batch, output = tone_dialogue([], [], 1.0)
        names = ("frames", "text_hits", "tokens", "token_nll", "token_hits")
        output["statistics"] = {name: torch.ones(1) for name in names}
        output["statistics"] |= {"text_nll": torch.tensor([1e4]), "code_nll": torch.ones(1, 1)}
        output["statistics"] |= {"code_hits": torch.ones(1, 1)}
        [scored_one] = score_batch("d", batch, output, ScoringConfig(), None)
        assert validation_metrics([scored_one.score], has_asr=False)["val_text_perplexity"] == math.inf


class Loudness(torch.nn.Module):
    """A quality that is known: the RMS."""

    def forward(self, audio_BS: torch.Tensor) -> torch.Tensor:
        return audio_BS.square().mean(1).sqrt()


def test_voice_scores_are_means_over_the_dialogues_that_speak(tmp_path: Path) -> None:
    torch.jit.script(Loudness()).save(tmp_path / "loudness.pt")
    quality, speakers = QualityScorer(f"torchscript:{tmp_path}/loudness.pt"), SpeakerSimilarity("resemblyzer")
    dialogues = []
    for cut_id, speech in [("a", [(1.0, 2.0)]), ("b", []), ("c", [(1.0, 2.0), (4.0, 4.5)])]:
        batch, output = tone_dialogue([], speech, 5.0, cut_id=cut_id)
        output |= {"ceiling_audio": output["audio"], "ceiling_audio_lens": output["audio_lens"]}
        scored_batch = score_batch("d", batch, output, ScoringConfig(), None, quality, speakers)
        dialogues += [dialogue.score for dialogue in scored_batch]
    rms = pytest.approx(0.3 / math.sqrt(2), rel=0.02)  # of the tone without the silence around it
    assert [dialogue.quality for dialogue in dialogues] == [rms, None, rms]
    assert [dialogue.speaker_similarity for dialogue in dialogues] == [pytest.approx(1.0), None, pytest.approx(1.0)]
    metrics = validation_metrics(dialogues, has_asr=False)
    assert metrics["val_quality"] == metrics["val_quality_d"] == rms
    assert metrics["val_speaker_similarity"] == metrics["val_speaker_similarity_d"] == pytest.approx(1.0)
