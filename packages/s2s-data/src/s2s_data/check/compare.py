"""What can be wrong between cuts: what should be the same and isn't, and what shouldn't be the same and is."""

from collections import Counter
from collections.abc import Iterator, Sequence

from s2s_data.check.cut import STORED, CutFacts
from s2s_data.check.kinds import Problem
from s2s_data.roles import Roles

# What CutFacts.traits has, and what is wrong where it differs.
_KINDS_OF_TRAITS = {
    "user's sample rate": "rates-differ",
    "agent's sample rate": "rates-differ",
    "codes": "codes-missing",
    "codebooks": "codebooks-differ",
    "codec": "codec-differs",
}


def compare_cuts(facts: Sequence[CutFacts], roles: Roles) -> Iterator[Problem]:
    """Yield what only shows when all cuts are looked at together."""
    yield from _unmatched_roles(facts, roles)
    yield from _repeated_ids(facts)
    for trait, kind in _KINDS_OF_TRAITS.items():
        yield from _odd_ones(facts, trait, kind)


def _unmatched_roles(facts: Sequence[CutFacts], roles: Roles) -> Iterator[Problem]:
    found: Counter[str] = Counter()
    for item in facts:
        found.update(item.speakers)
    speakers = ", ".join(f"{name!r} ({count} turns)" for name, count in found.most_common(8)) or "none"
    for key, names in (("input roles", roles.input_roles), ("output roles", roles.output_roles)):
        if facts and not found.keys() & names:
            what = f"the {key} {sorted(names)} match no turn; the speakers are {speakers}"
            yield Problem("role-unmatched", None, "all cuts", what)


def _repeated_ids(facts: Sequence[CutFacts]) -> Iterator[Problem]:
    seen: dict[str, CutFacts] = {}
    for item in facts:
        first = seen.setdefault(item.cut_id, item)
        if first is item:
            continue
        kind = "duplicate-id" if first.source == item.source else "shared-id"
        yield Problem(kind, item.cut_id, item.part, f"in {item.part}, and before that in {first.part}")


def _odd_ones(facts: Sequence[CutFacts], trait: str, kind: str) -> Iterator[Problem]:
    counts = Counter(item.traits[trait] for item in facts if item.traits[trait] is not None)
    if len(counts) < 2:
        return
    usual, count = (STORED, counts[STORED]) if kind == "codes-missing" else counts.most_common(1)[0]
    for item in facts:
        value = item.traits[trait]
        if value not in (None, usual):
            what = f"{trait}: {value}; in {count} of {counts.total()} cuts: {usual}"
            yield Problem(kind, item.cut_id, item.part, what)
