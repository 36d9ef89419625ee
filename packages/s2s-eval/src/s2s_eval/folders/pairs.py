"""Which hypothesis belongs to which reference."""

from pathlib import Path
from typing import NamedTuple

from s2s_eval.folders.audio import RIGHT, named
from s2s_eval.folders.hypotheses import Hypothesis, find_hypotheses
from s2s_eval.folders.references import Reference, find_references


class Pair(NamedTuple):
    """A dialogue to score."""

    name: str
    hypothesis: Hypothesis
    reference: Reference


class Pairs(NamedTuple):
    """The dialogues to score, and what was left out."""

    pairs: list[Pair]
    notes: list[str]


def find_pairs(hyp: Path, ref: Path, agent_channel: int = RIGHT, *, allow_missing: bool = False) -> Pairs:
    """Pair the hypotheses of the folder ``hyp`` with the references of ``ref``. Reads headers and texts, no audio.

    Raises ValueError for what can't be found or read, for ids found twice and, unless ``allow_missing``, for ids
    without a partner.
    """
    hypotheses = find_hypotheses(hyp, agent_channel)
    references = find_references(ref, hypotheses, agent_channel)
    lonely = []
    if missing := hypotheses.keys() - references.keys():
        lonely.append(f"{len(missing)} of {len(hypotheses)} in {hyp} have no reference ({named(missing)})")
    if missing := references.keys() - hypotheses.keys():
        lonely.append(f"{len(missing)} of {len(references)} in {ref} have no hypothesis ({named(missing)})")
    both = sorted(hypotheses.keys() & references.keys())
    if not both:
        raise ValueError(f"no id in common: {'; '.join(lonely)}. An id is a file's path in its folder, less its suffix")
    if lonely and not allow_missing:
        raise ValueError(f"{'; '.join(lonely)}: check the names, or score the rest with --allow-missing")
    return Pairs([Pair(name, hypotheses[name], references[name]()) for name in both], lonely)
