"""How a calibration is printed, and the config that it writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from s2s_train.calibrate import Calibrated
from s2s_train.calibrate_memory import GIB
from s2s_train.config import AppConfig, load_config

WIDTH = 120  # where the output is no terminal
_FIRST_LINE = "# Written by `calibrate`: the sizes hold for this model, precision, strategy and GPU.\n"


def print_calibration(found: Calibrated) -> None:
    """Print what each bin takes and gives."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=f"largest batches within {found.limit_bytes / GIB:.1f} GiB of a device")
    for column in ("bin s", "batch", "audio-s a step", "peak GiB", "s a step", "audio-s/s"):
        table.add_column(column, justify="right")
    for each in found.sized:
        is_capped = each.batch_size == found.max_batch_size
        tokens = "" if each.bin.num_tokens is None else f", {each.bin.num_tokens} tokens"
        table.add_row(
            f"{each.bin.duration_s:g}{tokens}",
            f"{each.batch_size}{' (--max-batch-size)' if is_capped else ''}",
            f"{each.audio_s:.0f}",
            f"{each.trial.peak_bytes / GIB:.2f}",
            f"{each.trial.step_s:.3f}",
            f"{each.audio_s / each.trial.step_s:.0f}",
        )
    console.print(table)
    for note in found.notes:
        console.print(note, soft_wrap=True, markup=False)


def train_ds_of(found: Calibrated) -> dict[str, Any]:
    """The keys of `data.train_ds` that say which batches to make."""
    bins = [
        each.bin.duration_s if each.bin.num_tokens is None else [each.bin.duration_s, each.bin.num_tokens]
        for each in found.sized
    ]
    return {
        "use_bucketing": True,
        "bucket_duration_bins": bins,
        "bucket_batch_size": [each.batch_size for each in found.sized],
        "batch_size": None,
        "batch_duration": None,
        "quadratic_duration": None,
    }


def check_out(out: Path) -> None:
    """Refuse to replace a file that isn't `calibrate`'s own.

    Raises:
        FileExistsError: `out` is another file.
    """
    if out.exists() and not (out.is_file() and out.read_bytes().startswith(_FIRST_LINE.encode())):
        raise FileExistsError(f"{out} is there already, and not written by calibrate: give another --out")


def write_config(out: Path, base: Path, cfg: AppConfig, overrides: Sequence[str], found: Calibrated) -> None:
    """Write to `out` a config that inherits `base`, with the sizes and the overrides they were found with.

    Raises:
        OSError: it can't be written.
    """
    content: dict[str, Any] = {"inherit": os.path.relpath(base.resolve(), out.resolve().parent)}
    for override in overrides:
        _set(content, override.partition("=")[0], cfg)
    content.setdefault("data", {}).setdefault("train_ds", {}).update(train_ds_of(found))
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
    out.write_text(_FIRST_LINE + text, encoding="utf-8")
    load_config(out)  # what can't be read again is to be known now


def _set(content: dict[str, Any], key: str, cfg: AppConfig) -> None:
    """Put the value of the dotted `key` into `content`.

    Of a list all items, as a file can't give one of them; of a class all arguments, as a file that names another class
    keeps none. A key of NeMo's that has no place in `cfg` is left out.
    """
    value: Any = asdict(cfg)
    names = key.removesuffix("._target_").split(".")
    for depth, name in enumerate(names):
        if name not in value:
            return
        value = value[name]
        if depth + 1 == len(names) or isinstance(value, list):
            content[name] = value
            return
        if not isinstance(content.get(name), dict):
            content[name] = {}
        content = content[name]
