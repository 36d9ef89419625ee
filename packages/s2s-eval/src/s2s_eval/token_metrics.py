"""How well the next token and codes are predicted, over many dialogues at once.

Shapes: ``B`` batch, ``K`` codebooks.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from torch import Tensor


class Statistics(TypedDict):
    """Sums over one dialogue's valid frames. ``nll``: negative log likelihood in nats; ``hits``: right at first."""

    frames: int
    text_nll: float
    text_hits: int
    tokens: int  # frames whose text label isn't padding
    token_nll: float  # of those
    token_hits: int
    code_nll: list[float]  # [K]
    code_hits: list[int]  # [K]


def dialogue_statistics(statistics: Mapping[str, Tensor] | None, index: int) -> Statistics | None:
    """Return one dialogue's row of the tensors [B] or [B, K] that ``validation_step`` gives, as plain numbers."""
    if statistics is None:
        return None
    return cast(Statistics, {name: statistics[name][index].tolist() for name in Statistics.__annotations__})


def token_metrics(
    dialogues: Sequence[Statistics], suffix: str = "", *, each_codebook: bool = False
) -> dict[str, float]:
    """Return accuracies (per cent) and perplexities, each frame predicted from the reference before it.

    - ``val_text_accuracy``, ``val_text_perplexity``: of the text channel at all valid frames, padding included;
      ``val_token_accuracy``, ``val_token_perplexity``: at those whose label isn't padding.
    - ``val_code_accuracy``, ``val_code_perplexity``: over all codebooks; for ``each_codebook`` also
      ``val_code_accuracy<suffix>_k0``, ``_k1`` …, counted from 0.

    A perplexity is exp of the mean negative log likelihood; inf is one that no float holds. What has no frame is left
    out. Sums are exact, so the order of dialogues doesn't matter.
    """
    frames = sum(d["frames"] for d in dialogues)
    tokens = sum(d["tokens"] for d in dialogues)
    hits_K = [sum(column) for column in zip(*(d["code_hits"] for d in dialogues), strict=True)]
    codes = frames * len(hits_K)
    metrics = {
        "val_text_accuracy": _share(sum(d["text_hits"] for d in dialogues), frames),
        "val_text_perplexity": _perplexity([d["text_nll"] for d in dialogues], frames),
        "val_token_accuracy": _share(sum(d["token_hits"] for d in dialogues), tokens),
        "val_token_perplexity": _perplexity([d["token_nll"] for d in dialogues], tokens),
        "val_code_accuracy": _share(sum(hits_K), codes),
        "val_code_perplexity": _perplexity([nll for d in dialogues for nll in d["code_nll"]], codes),
    }
    named = {name + suffix: value for name, value in metrics.items()}
    if each_codebook:
        named |= {f"val_code_accuracy{suffix}_k{k}": _share(hits, frames) for k, hits in enumerate(hits_K)}
    return {name: value for name, value in named.items() if value is not None}


def _share(hits: int, of: int) -> float | None:
    return 100 * hits / of if of else None


def _perplexity(nll: Sequence[float], of: int) -> float | None:
    if not of:
        return None
    try:
        return math.exp(math.fsum(nll) / of)
    except OverflowError:
        return math.inf
