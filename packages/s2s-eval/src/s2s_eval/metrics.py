"""Corpus metrics over pairs of texts. Each takes raw texts, normalises both sides, and computes over all at once."""

from collections.abc import Sequence
from typing import Any

from s2s_eval.text import normalize


def corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float | None:
    """Return sacrebleu's corpus BLEU in per cent, or None where no reference has a word.

    A pair whose reference is empty after normalising is left out: BLEU isn't defined on it.
    """
    pairs = normalized_pairs(hypotheses, references)
    if not pairs:
        return None
    score = _bleu().corpus_score([hyp for hyp, _ in pairs], [[ref for _, ref in pairs]])
    return float(score.score)


def bleu_signature() -> str:
    """Return sacrebleu's signature of :func:`corpus_bleu`: how to compute the same number elsewhere."""
    bleu = _bleu()
    bleu.corpus_score(["a"], [["a"]])  # sacrebleu has a signature only after scoring something
    return str(bleu.get_signature())


def corpus_wer(hypotheses: Sequence[str], references: Sequence[str]) -> float | None:
    """Return jiwer's word error rate over all pairs, in per cent, or None where no reference has a word."""
    import jiwer

    pairs = normalized_pairs(hypotheses, references)
    if not pairs:
        return None
    return 100.0 * float(jiwer.wer([ref for _, ref in pairs], [hyp for hyp, _ in pairs]))


def empty_rate(hypotheses: Sequence[str]) -> float | None:
    """Return the share in per cent of hypotheses with no word, or None where there is none."""
    if not hypotheses:
        return None
    return 100.0 * sum(not normalize(hypothesis) for hypothesis in hypotheses) / len(hypotheses)


def normalized_pairs(hypotheses: Sequence[str], references: Sequence[str]) -> list[tuple[str, str]]:
    """Return (hypothesis, reference), both normalised, without the pairs whose reference has no word."""
    pairs = [(normalize(hyp), normalize(ref)) for hyp, ref in zip(hypotheses, references, strict=True)]
    return [(hyp, ref) for hyp, ref in pairs if ref]


def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(lowercase=True)
