"""Corpus metrics over pairs of texts. Each takes raw texts, normalises both sides, and computes over all at once.

``language`` is a code of :data:`s2s_eval.text.LANGUAGES`; another one raises ValueError.
"""

from collections.abc import Sequence
from typing import Any

from s2s_eval.text import bleu_tokenizer, is_spaced, normalize


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str], language: str = "en") -> float | None:
    """Return sacrebleu's corpus BLEU in per cent, or None where no reference has a word.

    A pair whose reference is empty after normalising is left out: BLEU isn't defined on it. The tokenizer is that of
    :func:`s2s_eval.text.bleu_tokenizer`: Japanese, Korean, Thai, Lao and Burmese get a BLEU of letters, which isn't
    comparable with one of words.
    """
    pairs = normalized_pairs(hypotheses, references, language)
    if not pairs:
        return None
    score = _bleu(language).corpus_score([hyp for hyp, _ in pairs], [[ref for _, ref in pairs]])
    return float(score.score)


def bleu_signature(language: str = "en") -> str:
    """Return sacrebleu's signature of :func:`corpus_bleu`: how to compute the same number elsewhere."""
    bleu = _bleu(language)
    bleu.corpus_score(["a"], [["a"]])  # sacrebleu has a signature only after scoring something
    return str(bleu.get_signature())


def corpus_wer(hypotheses: Sequence[str], references: Sequence[str], language: str = "en") -> float | None:
    """Return jiwer's word error rate over all pairs, in per cent, or None where no reference has a word.

    A pair with a word on neither side is left out; words against an empty reference are insertions. In languages
    written without spaces (Chinese, Japanese, Thai, Lao, Burmese, Cantonese) a "word" is one letter.
    """
    import jiwer

    pairs = _pairs_with_words(hypotheses, references, language)
    if not pairs:
        return None
    return 100.0 * float(jiwer.wer([ref for _, ref in pairs], [hyp for hyp, _ in pairs]))


def corpus_cer(hypotheses: Sequence[str], references: Sequence[str], language: str = "en") -> float | None:
    """Return jiwer's character error rate over all pairs, in per cent, or None where no reference has a word.

    The spaces between words count as characters, as jiwer has it; languages written without them have none.
    """
    import jiwer

    pairs = _pairs_with_words(hypotheses, references, language)
    if not pairs:
        return None
    if not is_spaced(language):
        pairs = [(hyp.replace(" ", ""), ref.replace(" ", "")) for hyp, ref in pairs]
    return 100.0 * float(jiwer.cer([ref for _, ref in pairs], [hyp for hyp, _ in pairs]))


def empty_rate(hypotheses: Sequence[str], language: str = "en") -> float | None:
    """Return the share in per cent of hypotheses with no word, or None where there is none."""
    if not hypotheses:
        return None
    return 100.0 * sum(not normalize(hypothesis, language) for hypothesis in hypotheses) / len(hypotheses)


def answer_accuracy(texts: Sequence[str], values: Sequence[str | None], language: str = "en") -> float | None:
    """Return the share in per cent of texts that contain their value, or None where none has a value.

    Texts without one are left out. See :func:`is_right`.
    """
    judged = [is_right(text, value, language) for text, value in zip(texts, values, strict=True)]
    known = [right for right in judged if right is not None]
    return 100.0 * sum(known) / len(known) if known else None


def is_right(text: str, value: str | None, language: str = "en") -> bool | None:
    """Tell whether ``text`` contains ``value`` (:func:`contains`); None where that is None, or has no word."""
    return contains(text, value, language) if value and normalize(value, language) else None


def contains(text: str, value: str, language: str = "en") -> bool:
    """Tell whether the words of ``value``, which has one, stand in ``text``: in their order, none between them.

    Whole words count: "ten" isn't in "tennis". In languages written without spaces a "word" is one letter.
    """
    wanted = normalize(value, language)
    assert wanted, value
    return f" {wanted} " in f" {normalize(text, language)} "  # normalised words stand one space apart


def normalized_pairs(
    hypotheses: Sequence[str], references: Sequence[str], language: str = "en"
) -> list[tuple[str, str]]:
    """Return (hypothesis, reference), both normalised, without the pairs whose reference has no word."""
    return [(hyp, ref) for hyp, ref in _normalized(hypotheses, references, language) if ref]


def _pairs_with_words(hypotheses: Sequence[str], references: Sequence[str], language: str) -> list[tuple[str, str]]:
    """Return the pairs that have a word on one side; none if no reference has one, for the rate has no denominator."""
    pairs = [(hyp, ref) for hyp, ref in _normalized(hypotheses, references, language) if hyp or ref]
    return pairs if any(ref for _, ref in pairs) else []


def _normalized(hypotheses: Sequence[str], references: Sequence[str], language: str) -> list[tuple[str, str]]:
    pairs = zip(hypotheses, references, strict=True)
    return [(normalize(hyp, language), normalize(ref, language)) for hyp, ref in pairs]


def _bleu(language: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(lowercase=True, tokenize=bleu_tokenizer(language))
