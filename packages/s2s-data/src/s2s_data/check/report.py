"""Problems as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from s2s_data.check.corpus import Report
from s2s_data.check.kinds import ERROR, KINDS, WARNING, Problem
from s2s_data.wording import counted


def by_kind(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    """Return the problems by kind, in the order of KINDS."""
    found: dict[str, list[Problem]] = {name: [] for name in KINDS}
    for problem in problems:
        found[problem.kind].append(problem)
    return {name: items for name, items in found.items() if items}


def as_text(report: Report, num_examples: int) -> str:
    """Return the first ``num_examples`` problems of each kind, a table of the kinds, and a last line of sums."""
    grouped = by_kind(report.problems)
    blocks = [_examples(name, items, num_examples) for name, items in grouped.items()]
    if grouped:
        blocks.append(_table(grouped))
    blocks.append(_sums(report))
    return "\n\n".join(blocks)


def as_json(report: Report, data: Sequence[str]) -> dict[str, Any]:
    """Return everything that was found, as JSON has it."""
    return {
        "data": list(data),
        "num_cuts": report.num_cuts,
        "num_errors": num_of(report, ERROR),
        "num_warnings": num_of(report, WARNING),
        "kinds": {
            name: {
                "severity": KINDS[name].severity,
                "num_problems": len(items),
                "num_cuts": len(_cut_ids(items)),
                "advice": KINDS[name].advice,
            }
            for name, items in by_kind(report.problems).items()
        },
        "problems": [{"severity": problem.severity, **problem._asdict()} for problem in report.problems],
    }


def num_of(report: Report, severity: str) -> int:
    """Count the problems of a severity."""
    return sum(problem.severity == severity for problem in report.problems)


def _examples(name: str, problems: Sequence[Problem], num_examples: int) -> str:
    lines = [f"{name} ({KINDS[name].severity})", *(f"  {problem}" for problem in problems[:num_examples])]
    if len(problems) > num_examples:
        lines.append(f"  and {len(problems) - num_examples} more")
    return "\n".join(lines)


def _table(grouped: dict[str, list[Problem]]) -> str:
    rows = []
    for name, problems in grouped.items():
        ids = _cut_ids(problems)
        first = ", ".join(ids[:2]) + (", …" if len(ids) > 2 else "")
        rows.append((name, KINDS[name].severity, len(ids) or "-", first or "-", KINDS[name].advice))
    table: str = tabulate(
        rows,
        headers=("kind", "severity", "cuts", "first of them", "what to do"),
        maxcolwidths=[None, None, None, 32, 52],
        disable_numparse=True,
    )
    return table


def _sums(report: Report) -> str:
    nouns = {"cut": report.num_cuts, "error": num_of(report, ERROR), "warning": num_of(report, WARNING)}
    return ", ".join(counted(number, noun) for noun, number in nouns.items())


def _cut_ids(problems: Sequence[Problem]) -> list[str]:
    return list(dict.fromkeys(problem.cut_id for problem in problems if problem.cut_id is not None))
