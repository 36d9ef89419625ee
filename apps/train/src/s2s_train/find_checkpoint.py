"""Which checkpoint of a run is meant: the last, the best, or a file."""

from __future__ import annotations

import zipfile
from pathlib import Path

from s2s_parallel.checkpoint_folder import METADATA, whole_path
from s2s_train.run_folder import RunFolder

LAST, BEST = "last", "best"


def find_checkpoint(run: RunFolder, asked: str, option: str) -> Path:
    """Return the checkpoint that `asked` means: last, best, a path, or a name in the run's checkpoints/.

    Args:
        run: whose checkpoints last, best and names are.
        asked: what the user gave.
        option: as what it was given, for the messages: "--checkpoint", "ckpt".

    Raises:
        FileNotFoundError: it isn't there; the message lists those that are.
        ValueError: it is damaged or none, or the run doesn't know its best one.
    """
    if not Path(asked).name:
        raise ValueError(f"{option} {asked!r} is no checkpoint: give {LAST}, {BEST} or a path{_others(run)}")
    if asked == LAST:
        found = existing(run, run.last_checkpoint)
    elif asked == BEST:
        found = _best(run, option)
    else:
        given = Path(asked)
        # only of a bare name: where a path leads nowhere, another run's checkpoint isn't meant to be one of this run
        is_name = asked == given.name and not whole_path(given).exists()
        found = existing(run, run.checkpoints / asked if is_name else given)
    if found.is_dir() and not (found / METADATA).is_file():
        raise ValueError(f"{found} is a folder, but no checkpoint: give another with {option}{_others(run)}")
    if found.is_file() and not zipfile.is_zipfile(found):
        raise ValueError(f"checkpoint {found} is damaged: give another with {option}{_others(run)}")
    return found


def existing(run: RunFolder, checkpoint: Path) -> Path:
    """Return the path if a checkpoint is there.

    Raises:
        FileNotFoundError: none is; the message lists the run's others.
    """
    if whole_path(checkpoint).exists():
        return checkpoint
    others = _others(run)
    raise FileNotFoundError(
        f"no checkpoint at {checkpoint}: {'give' if others else 'the run has saved none yet'}{others}"
    )


def checkpoint_names(run: RunFolder) -> list[str]:
    """Return the names of the run's checkpoints."""
    return sorted(path.name for path in run.checkpoints.glob("*.ckpt"))


def _others(run: RunFolder) -> str:
    names = checkpoint_names(run)
    return f" one of {', '.join(names)}" if names else ""


def _best(run: RunFolder, option: str) -> Path:
    """The checkpoint that the run's last one records as best, by the metric that the run monitored."""
    from s2s_model.weights import read_checkpoint

    last = existing(run, run.last_checkpoint)
    callbacks = read_checkpoint(last).get("callbacks", {})
    recorded = [state for state in callbacks.values() if isinstance(state, dict) and state.get("best_model_path")]
    if not recorded:
        raise ValueError(f"{option} best: {last} records none, as nothing was validated yet:{_others(run)}")
    return existing(run, run.checkpoints / Path(recorded[0]["best_model_path"]).name)  # the run may have moved
