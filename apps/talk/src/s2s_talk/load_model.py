"""From the folder on the command line to a model that talks."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from s2s_talk.protocol import Limits
from s2s_talk.talker import Talker


@dataclass(frozen=True)
class ModelArgs:
    """What the command line says of the model."""

    folder: Path  # an export
    device: str = "cpu"
    dtype: str | None = None  # None: as it was saved
    compile: bool = False  # make each frame faster on a GPU; starting takes longer
    num_threads: int | None = None  # of torch on the CPU; None: half the cores


def check_export(folder: Path) -> None:
    """Check that `folder` is what `hatch run train:export` writes, before the slow imports.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds something else; the message says how to make one.
    """
    from s2s_model.pretrained import is_export

    how = "hatch run train:export RUN OUT writes one"
    if is_export(folder):
        return
    if folder.suffix == ".ckpt" or (folder / "checkpoints").is_dir():
        raise ValueError(f"{folder} is a run's: first hatch run train:export {folder} OUT, then serve OUT")
    if not folder.exists():
        raise FileNotFoundError(f"no folder {folder}: give an exported model ({how})")
    raise ValueError(f"{folder} is no exported model, it has no config.json of one: {how}")


def open_talker(args: ModelArgs, limits: Limits) -> Talker:
    """Load the model and open its session; say how fast it is.

    Raises:
        ValueError, OSError: as `DuplexS2SModel.from_pretrained` and `open_session`, or `args.device` isn't there.
    """
    import torch

    from s2s_model import DuplexS2SModel

    print(f"loading {args.folder} ...", flush=True)
    _check_device(args.device)
    # The page and the server need a core too, and threads that wait for one another get slow: on two cores beside a
    # busy program a tick of the demo took 67 ms with one thread and 1.4 s with two.
    torch.set_num_threads(args.num_threads or max((os.cpu_count() or 1) // 2, 1))
    model = DuplexS2SModel.from_pretrained(args.folder, device=args.device, dtype=args.dtype)
    try:
        talker = Talker(model, limits.max_sessions, limits.max_duration_s, compile=args.compile)
    except ValueError as error:
        if limits.max_sessions == 1:
            raise
        raise ValueError(f"{error}. With --max-sessions 1 it may do") from error
    _say_speed(talker.time_ticks(), limits.max_sessions, talker.format.frame_length_s)
    return talker


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} can't be used here: {str(error).splitlines()[0]}") from error


def _say_speed(tick_s: float, num_places: int, frame_length_s: float) -> None:
    took, frame = f"{1000 * tick_s:.0f} ms", f"{1000 * frame_length_s:.0f} ms"
    print(f"{frame} of audio take {took} with all places taken ({num_places})", flush=True)
    if tick_s > frame_length_s:
        print(
            "warning: that is slower than real time. Answers will be late, and part of what users say will be skipped: "
            "use a smaller --max-sessions, another --device, or a machine with less to do",
            file=sys.stderr,
            flush=True,
        )
