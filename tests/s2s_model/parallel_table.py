"""Writes docs/parallel-families.md: `hatch run test:parallel`."""

import sys
import tempfile
import traceback
from pathlib import Path

import torch
import transformers

from tests.s2s_model.builders import make_codec
from tests.s2s_model.families import make_family
from tests.s2s_model.parallel_checks import FAMILIES, LAYOUTS, TOLERANCE, build, compare

PAGE = Path(__file__).parents[2] / "docs/parallel-families.md"
TEXT = """# LLM families on several devices

`hatch run test:parallel` made this page. Each figure is the largest difference between processes that share the whole
duplex model (encoder, LLM of the family with its traits, heads) and one process that has it alone: of losses, logits
and the gradient of every parameter, as a share of the largest value of each tensor, in float32 on gloo. Generation by
the processes gives the same tokens and codes, or the cell would say ✗.

{table}

Two dialogues of 24 and 17 frames: odd numbers, which the processes don't divide. Sums in another order change the last
bits, and gradients close to zero lose more of them: what is under {tolerance:g} passes. A wrong plan is off by a
hundredth or more (`test_a_wrong_plan_is_seen` in `tests/s2s_model/test_parallel.py`, which holds this table in CI).

\\* Fewer key heads than processes: run with `parallel.uneven_heads=gather`; the default refuses.

torch {torch}, transformers {transformers}.
"""


def main() -> int:
    """Compare all families in all layouts, write the page; return how many failed."""
    rows, failed = [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec = make_codec(folder / "codec.nemo")
        for family, make_config in FAMILIES.items():
            model = build(make_family("", folder / family, make_config()), codec)
            cells = []
            for index, layout in enumerate(LAYOUTS.values()):
                place = folder / f"{family}-{index}"
                place.mkdir()
                try:
                    cells.append(f"{compare([layout], model, place)[0]:.1e}")
                except Exception:
                    traceback.print_exc()
                    cells.append("✗")
                    failed += 1
            star = r"\*" if model.parts().config.num_key_value_heads % 2 else ""
            rows.append(f"| {family}{star} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    table = "\n".join([f"| family | {' | '.join(LAYOUTS)} |", "|---" * (len(LAYOUTS) + 1) + "|", *rows])
    PAGE.write_text(
        TEXT.format(table=table, tolerance=TOLERANCE, torch=torch.__version__, transformers=transformers.__version__),
        encoding="utf-8",
    )
    print(f"wrote {PAGE}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
