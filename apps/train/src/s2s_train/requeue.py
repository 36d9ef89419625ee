"""Puts a run's SLURM job back in its queue, where the same command goes on."""

from __future__ import annotations

import os
import subprocess


def wants_requeue(requeue: object) -> bool:
    """Return whether a run that a signal stops has to be requeued.

    Args:
        requeue: `exp_manager.requeue`.

    Raises:
        ValueError: it isn't auto, true or false; or true where there is no SLURM job.
    """
    if requeue not in ("auto", True, False):
        raise ValueError(f"exp_manager.requeue is {requeue!r}: use auto, true or false")
    if requeue is True and slurm_job() is None:
        raise ValueError("exp_manager.requeue is true, but SLURM_JOB_ID isn't set: start it by sbatch, or use auto")
    return requeue is True or (requeue == "auto" and slurm_job() is not None)


def slurm_job() -> str | None:
    """Return the id of the SLURM job that this process is part of, as scontrol takes it; None outside SLURM."""
    env = os.environ
    if "SLURM_ARRAY_JOB_ID" in env and "SLURM_ARRAY_TASK_ID" in env:
        return f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"  # one number can mean the whole array
    return env.get("SLURM_JOB_ID")


def requeue(job: str) -> str:
    """Put `job` back in its queue, which ends its processes.

    A job that SLURM is ending already, since it was cancelled or its time is over, is left alone.

    Returns:
        "" when it is done, else why it isn't.
    """
    state, error = _ask("squeue", "--noheader", "--format=%T", f"--jobs={job}")
    if error:
        return error
    if state != "RUNNING":
        return f"its state is {state}, not RUNNING"
    return _ask("scontrol", "requeue", job)[1]


def _ask(*command: str) -> tuple[str, str]:
    """Return what `command` says, and its error."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"{command[0]}: {error}"
    failed = f"{' '.join(command)}: {done.stderr.strip() or done.returncode}" if done.returncode else ""
    return done.stdout.strip(), failed
