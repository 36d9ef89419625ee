import jiwer
import pytest
import sacrebleu

from s2s_eval.dialogue_scores import validation_metrics
from s2s_eval.metrics import bleu_signature, corpus_bleu, corpus_cer, corpus_wer
from s2s_eval.text import LANGUAGES, normalize
from tests.s2s_eval.builders import scored


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "It's twelve, my friend!", "it is 12 my friend"),
        ("de", "Es ist ZWÖLF Uhr (ungefähr), größer!", "es ist zwölf uhr größer"),
        ("fr", "C’est l'été…", "c est l été"),
        ("es", "¿Qué tal?", "qué tal"),
        ("ru", "Привет, мир!", "привет мир"),
        ("hi", "नमस्ते, दुनिया!", "नमस्ते दुनिया"),
        ("ko", "안녕하세요, 여러분!", "안녕하세요 여러분"),
        ("zh", "你好，世界！", "你 好 世 界"),
        ("ja", "今日は、がっこう。", "今 日 は が っ こ う"),
        ("th", "น้ำดี", "น้ำ ดี"),
        ("yue", "係 呀。", "係 呀"),
        ("de", "...", ""),
    ],
)
def test_normalising(language: str, text: str, expected: str) -> None:
    assert normalize(normalize(text, language), language) == normalize(text, language)
    if language == "th":  # one letter with its marks is one grapheme; which they are depends on Unicode's version
        assert len(normalize(text, language).split()) < len(text)
        assert normalize(text, language).replace(" ", "").startswith("น")
    else:
        assert normalize(text, language) == expected


def test_an_unknown_language_names_the_known_ones() -> None:
    for call in (lambda: normalize("x", "klingon"), lambda: bleu_signature("EN"), lambda: corpus_wer(["a"], ["a"], "")):
        with pytest.raises(ValueError, match=r"scoring\.language=.*write one of .*de.*en.*zh"):
            call()


def test_every_language_works() -> None:
    assert len(LANGUAGES) == 100
    for language in LANGUAGES:
        assert corpus_wer(["a b c"], ["A b c!"], language) == 0
        assert "version:" in bleu_signature(language)


def test_the_tokenizer_is_in_the_signature() -> None:
    expected = {"en": "13a", "de": "13a", "zh": "zh", "yue": "zh", "ja": "char", "ko": "char", "th": "char"}
    for language, tokenizer in expected.items():
        assert f"tok:{tokenizer}|" in bleu_signature(language)


CHINESE = (["今天天气很好。", "我叫小明"], ["今天天气真好！", "我叫小明。"])


def test_chinese_errors_are_of_letters() -> None:
    hypotheses, references = CHINESE
    assert corpus_wer(hypotheses, references, "zh") == pytest.approx(100 / 10)
    plain = [[text.strip("。！") for text in texts] for texts in CHINESE]
    assert corpus_cer(hypotheses, references, "zh") == pytest.approx(100 * jiwer.cer(plain[1], plain[0]))
    bleu = sacrebleu.corpus_bleu(plain[0], [plain[1]], tokenize="zh")
    assert corpus_bleu(hypotheses, references, "zh") == pytest.approx(bleu.score)


def test_japanese_and_german_bleu_are_sacrebleus() -> None:
    heard, right = ["今日はとてもいい天気です", "私の名前は"], ["今日はすごくいい天気です", "私の名前は"]
    expected = sacrebleu.corpus_bleu(heard, [right], tokenize="char")
    assert corpus_bleu(heard, right, "ja") == pytest.approx(expected.score)
    heard, right = ["Der Himmel ist heute schön blau."], ["der Himmel ist heute sehr blau"]
    plain = sacrebleu.corpus_bleu(["der himmel ist heute schön blau"], [["der himmel ist heute sehr blau"]])
    assert corpus_bleu(heard, right, "de") == pytest.approx(plain.score)


def test_metrics_of_a_validation_are_in_its_language() -> None:
    dialogues = [scored("d", str(i), [pair]) for i, pair in enumerate(zip(*CHINESE, strict=True))]
    metrics = validation_metrics(dialogues, has_asr=True, language="zh")
    assert metrics["val_asr_wer"] == pytest.approx(10)
    assert metrics["val_asr_bleu_d"] == corpus_bleu(*CHINESE, "zh")
    assert metrics["val_txt_bleu_d"] == corpus_bleu(*CHINESE, "zh")
