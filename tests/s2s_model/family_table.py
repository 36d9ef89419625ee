"""Writes docs/llm-families.md: `hatch run test:families`."""

import sys
import tempfile
import traceback
from pathlib import Path

import torch
import transformers

from tests.s2s_model.families import FAMILIES
from tests.s2s_model.family_checks import CHECKS, check

PAGE = Path(__file__).parents[2] / "docs/llm-families.md"
TEXT = """# LLM families

`hatch run test:families` made this page: it builds a small model of each family at random weights, with the family's
own traits (embedding scale, soft-capping, sliding windows of 8 frames, norms, tied or untied embeddings), inside the
duplex model with a real encoder and codec, and runs the checks on a CPU in float32, over 24 frames.

{table}

torch {torch}, transformers {transformers}.

What a tick says (`tests/s2s_model/family_checks.py`):
{legend}

Any other causal LM of Hugging Face is tried in the same way: one line in `tests/s2s_model/families.py`. A family whose
logits are computed in a way that isn't known here is refused when the model is built.
"""


def main() -> int:
    """Run all checks, write the page; return how many failed."""
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for family in FAMILIES:
            marks = []
            for name in CHECKS:
                marks.append(_passes(family, name, Path(folder) / f"{family}-{name}"))
                failed += not marks[-1]
            rows.append(f"| {family} | " + " | ".join("✓" if mark else "✗" for mark in marks) + " |")
            print(rows[-1], flush=True)
    table = "\n".join([f"| family | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|", *rows])
    legend = "\n".join(f"- **{name}**: {(function.__doc__ or '').strip()}" for name, function in CHECKS.items())
    PAGE.write_text(
        TEXT.format(table=table, legend=legend, torch=torch.__version__, transformers=transformers.__version__),
        encoding="utf-8",
    )
    print(f"wrote {PAGE}")
    return failed


def _passes(family: str, name: str, folder: Path) -> bool:
    folder.mkdir()
    try:
        check(family, name, folder)
    except Exception:
        traceback.print_exc()
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
