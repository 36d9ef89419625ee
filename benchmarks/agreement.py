"""Whether both models compute the same: losses, gradients, codes and greedy answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.peer_size import with_codes
from benchmarks.side import Side
from benchmarks.timing import exact_float32

# Relative. In float32 both run the same sums in another order. NeMo's bf16 loss is itself a bf16 number, rounded to
# 1/256 in each of a handful of operations, and its gradients pass through as many bf16 roundings as ours.
TOLERANCES = {
    "float32 loss": 1e-4, "float32 gradient_norm": 2e-3, "training loss": 1e-2, "training gradient_norm": 5e-2,
}  # fmt: skip
SMALL = "small"  # the name of the float32 batch among codes


def exact_figures(side: Side, batch: dict[str, Any], known: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """The loss and the gradients' norm of an unpadded batch in float32 without TF32, and how codes and answers differ.

    The first side leaves its codes and answers in `known`. The second is compared with them, and its loss is that of
    the first side's codes: a codec in float16 gives others where a latent lies at the edge between two.
    """
    with exact_float32():
        codes_BTK, frames_B = side.codes(batch)
        same = known.get(f"{SMALL} codes")
        figures: dict[str, Any] = side.loss_and_norm(batch if same is None else with_codes(batch, same))
        answer = side.answer(batch)
    made = {
        "codes": (codes_BTK, frames_B.long().cpu()),
        "text": (answer["tokens_text"], torch.empty(0)),
        "answered codes": (answer["tokens_audio"], torch.empty(0)),
    }
    for name, (value, lens) in made.items():
        key = f"{SMALL} {name}"
        if key in known:
            figures[f"{name} equal"] = share_equal(value, known[key][0])
        known[key] = (value.cpu().long(), lens)
    return figures


def share_equal(ours: Tensor, theirs: Tensor) -> float:
    """The share of equal elements, over the frames that both have."""
    frames = min(ours.shape[1], theirs.shape[1])
    return round((ours[:, :frames].cpu() == theirs[:, :frames].cpu()).double().mean().item(), 5)


def compare(shown: dict[str, Any]) -> dict[str, Any]:
    """Relative differences of losses and gradient norms, each beside its tolerance.

    Padded batches are left out: NeMo counts padding in its loss, and we don't.
    """
    nemo, ours = shown["nemo"], shown["ours"]
    rows = [_row("float32", "small batch", nemo["agree"], ours["agree"], key) for key in ("loss", "gradient_norm")]
    theirs = nemo.get("train", {}).get("audio", {})
    for stored, cases in ours.get("train", {}).items():
        for case, figures in cases.items():
            if case in theirs and "loss" in figures and "loss" in theirs[case] and " x " in case:
                rows += [
                    _row("training", f"{case}, {stored}", theirs[case], figures, key)
                    for key in ("loss", "gradient_norm")
                ]
    return {"agree": all(row["difference"] <= row["tolerance"] for row in rows), "rows": rows}


def _row(precision: str, case: str, nemo: dict[str, Any], ours: dict[str, Any], key: str) -> dict[str, Any]:
    difference = abs(ours[key] - nemo[key]) / abs(nemo[key])
    return {
        "case": case, "figure": f"{precision} {key}", "nemo": nemo[key], "ours": ours[key],
        "difference": float(f"{difference:.3g}"), "tolerance": TOLERANCES[f"{precision} {key}"],
    }  # fmt: skip
