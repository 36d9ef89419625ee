"""What `benchmarks.gpu_nemo` does with each of the two models, section by section."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks import floor
from benchmarks.agreement import compare, exact_figures, share_equal
from benchmarks.gpu_report import Report, derive
from benchmarks.live import live_session
from benchmarks.nemo_side import OPTIMIZER, NemoSide
from benchmarks.our_side import OurSide
from benchmarks.peer_size import (
    FAST_OPTIMIZER,
    SIZES,
    Size,
    audio_s,
    even_batch,
    mix_of,
    model_section,
    on_device,
    with_codes,
)
from benchmarks.side import Side, train
from benchmarks.step_parts import parts_of_step
from benchmarks.timing import free, memory_mib, peak_gib, timed_ms
from s2s_parallel.config import ParallelConfig

SECTIONS = ("floor", "agree", "train", "parts", "decode", "live", "validation")
MIX = "bucketed mix"
AUDIO, CODES = "audio", "stored codes"  # what a batch has of the agent
OFTEN = {"warm_up": 3, "rounds": 3, "steps": 8}
RARELY = {"warm_up": 2, "rounds": 2, "steps": 2}  # where a step is long, or a round has several

Batch = dict[str, Any]


class Comparison:
    """Both models in turn, through the chosen sections.

    Args:
        args: those of `benchmarks.gpu_nemo`.
        report: takes the figures.
        folder: where the models' parts are.
    """

    def __init__(self, args: argparse.Namespace, report: Report, folder: Path) -> None:
        self._args = args
        self._report = report
        self._folder = folder
        self._size: Size = SIZES[args.size]
        self._device = torch.device(args.device)
        self._dtype: torch.dtype = getattr(torch, args.dtype)
        self._weights: dict[str, Tensor] = {}  # NeMo's, on the host
        self._codes: dict[str, tuple[Tensor, Tensor]] = {}  # NeMo's, by case

    def run(self) -> None:
        """The floor, then NeMo's model, then ours."""
        if "floor" in self._args.only:
            with self._report.guarded("floor"):
                self._report.put(floor.measure(self._device), "floor")
        for who, build in (("nemo", self._build_nemo), ("ours", self._build_ours)):
            if who in self._args.who:
                with self._report.guarded(f"{who}: build"):
                    self._measure(who, build)
                free()
                self._report.put(memory_mib(), who, "memory_mib_left_behind")
        if "agree" in self._args.only and len(self._args.who) == 2:
            with self._report.guarded("agree"):
                self._check_agreement()
        with self._report.guarded("derived figures"):
            self._report.put(derive(self._report.shown), "derived")

    def _check_agreement(self) -> None:
        agreement = compare(self._report.shown)
        self._report.put(agreement, "agreement")
        if not agreement["agree"]:
            self._report.fail("agree: losses or gradients differ by more than the tolerances")

    def _build_nemo(self) -> NemoSide:
        side = NemoSide.build(model_section(self._folder, self._size, OPTIMIZER), self._device, self._dtype)
        self._weights = side.state()
        return side

    def _build_ours(self) -> OurSide:
        base = model_section(self._folder, self._size, FAST_OPTIMIZER)
        section: Any = OmegaConf.to_container(OmegaConf.merge(base, OmegaConf.from_dotlist(self._args.model)))
        side = OurSide.build(section, ParallelConfig(**self._args.parallel), self._device, self._dtype)
        if self._weights:
            side.take(self._weights)
            self._weights = {}
        return side

    def _measure(self, who: str, build: Callable[[], Side]) -> None:
        side = build()
        if "agree" in self._args.only:
            with self._report.guarded(f"{who}: agree"):
                batch = on_device(even_batch(self._size, *self._size.agree), self._device)
                self._report.put(exact_figures(side, batch, self._codes), who, "agree")
        side.to_training_dtype()
        if isinstance(side, OurSide):
            with self._report.guarded(f"{who}: counts"):
                self._report.put(self._counts(side), who, "counts")
        sections: dict[str, Callable[[str, Any], None]] = {
            "train": self._train,
            "parts": self._parts,
            "decode": self._decode,
            "live": self._live,
            "validation": self._validation,
        }
        for name, section in sections.items():
            if name in self._args.only:
                side.drop_graphs()
                free()
                with self._report.guarded(f"{who}: {name}"):
                    section(who, side)

    def _counts(self, side: OurSide) -> dict[str, Any]:
        flops = {name: sum(side.flops(batch) for batch in make()) for name, make in self._cases()}
        return {"flops": flops, "bytes_of_step": side.bytes_of_step(), "bytes_of_frame": side.bytes_of_frame()}

    def _cases(self) -> Iterator[tuple[str, Callable[[], list[Batch]]]]:
        """Names of training cases, and what makes their batches."""
        size = self._size
        for case in (*size.train, size.best, size.long):
            yield name_of(*case), partial(lambda case: [even_batch(size, *case)], case)
        yield MIX, lambda: mix_of(size)

    def _variants(self, side: Side, name: str, batches: list[Batch]) -> Iterator[tuple[str, list[Batch], Batch]]:
        """The batches with audio; for ours also with stored codes, NeMo's if at hand. The last: what is known of it."""
        yield AUDIO, batches, {}
        if isinstance(side, NemoSide):
            if len(batches) == 1:
                codes_BTK, lens_B = side.codes(batches[0])
                self._codes[name] = (codes_BTK.long().cpu(), lens_B.long().cpu())
            return
        codes, known = [side.codes(batch) for batch in batches], {}
        if name in self._codes:
            known = {"codes_equal": share_equal(codes[0][0], self._codes[name][0])}
            codes = [self._codes[name]]
        yield CODES, [with_codes(batch, each) for batch, each in zip(batches, codes, strict=True)], known

    # --- sections ------------------------------------------------------------------------------------------------

    def _is_wanted(self, case: str) -> bool:
        return not self._args.cases or case in self._args.cases

    def _train(self, who: str, side: Side) -> None:
        for name, make in self._cases():
            if who == "nemo" and name == name_of(*self._size.best):
                continue
            if not self._is_wanted(name):
                continue
            batches = [on_device(batch, self._device) for batch in make()]
            pace = RARELY if name in (MIX, name_of(*self._size.long)) else OFTEN
            figures = {"audio_s": round(sum(map(audio_s, batches)), 2), "batches": len(batches)}
            for stored, case_batches, known in self._variants(side, name, batches):
                measured = train(side, case_batches, **pace)
                self._report.put(measured | figures | known, who, "train", stored, name)

    def _parts(self, who: str, side: Side) -> None:
        case = self._size.train[min(1, len(self._size.train) - 1)]
        batch = on_device(even_batch(self._size, *case), self._device)
        for stored, batches, _ in self._variants(side, "parts", [batch]):
            self._report.put({"case": name_of(*case)} | parts_of_step(side, batches[0]), who, "parts", stored)

    def _decode(self, who: str, side: Side) -> None:
        """The second call is timed."""
        for num_dialogues in self._size.decode:
            case = name_of(num_dialogues, self._size.decode_s)
            if not self._is_wanted(case):
                continue
            batch = on_device(even_batch(self._size, num_dialogues, self._size.decode_s), self._device)
            free()
            frames = side.answer(batch)["tokens_text"].shape[1]
            ms = timed_ms(partial(side.answer, batch))
            figures = {"ms": round(ms, 1), "frames": frames, "ms_per_frame": round(ms / frames, 3)}
            self._report.put(figures | {"peak_gib": peak_gib()}, who, "decode", case)

    def _live(self, who: str, side: Side) -> None:
        if isinstance(side, OurSide):
            session_s = self._args.session_s or self._size.session_s
            figures = live_session(
                side.model, side.dtype, session_s, self._args.session_limit_s, compile=self._args.parallel["compile"]
            )
            self._report.put(figures, who, "live")

    def _validation(self, who: str, side: Side) -> None:
        """One batch first, then all are timed."""
        num_batches, num_dialogues = self._size.validation
        batch = on_device(even_batch(self._size, num_dialogues, self._size.decode_s), self._device)
        for stored, (first,), _ in self._variants(side, "validation", [batch]):
            # A reference is listened to as well, so its audio is there with codes too.
            whole = batch | first
            side.validate([whole])
            ms = timed_ms(partial(side.validate, [whole] * num_batches))
            figures = {"dialogues": num_batches * num_dialogues, "s": round(ms / 1000, 3)}
            self._report.put(figures, who, "validation", stored)


def name_of(num_dialogues: int, duration_s: float) -> str:
    """A case as tables call it."""
    return f"{num_dialogues} x {duration_s:g} s"
