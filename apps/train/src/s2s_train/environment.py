"""What a run was started with: the code's git state, packages, hardware, command line. One file for each start."""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from s2s_parallel.atomic_file import write_atomically

ENVIRONMENT, CHANGES = "environment.json", "changes.patch"
_GIT_TIMEOUT_S = 20.0
# Whatever the user's git config says of diffs, `git apply` has to take them.
_PLAIN = (
    "--binary",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
    "--no-relative",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
_MAX_PATCH_BYTES = 20 * 2**20


def write_environment(run: Path) -> None:
    """Write `environment.json` and, where tracked files differ from the commit, `changes.patch` to a run's folder.

    The files are of its first start; those of a later one have its number: `environment-2.json`, `changes-2.patch`.
    """
    number = 1 + len(list(run.glob("environment*.json")))
    suffix = "" if number == 1 else f"-{number}"
    code = Path(__file__).parent
    patch = _git(code, "diff", "HEAD", *_PLAIN)
    if patch:
        kept = patch if len(patch) <= _MAX_PATCH_BYTES else b"too large: the first files are " + patch[:2000]
        write_atomically(_with_suffix(run / CHANGES, suffix), lambda file: file.write(kept))
    text = json.dumps({"start": number, **describe_environment(code)}, indent=1) + "\n"
    write_atomically(_with_suffix(run / ENVIRONMENT, suffix), lambda file: file.write(text.encode()))


def describe_environment(code: Path) -> dict[str, Any]:
    """Return what `environment.json` holds; `code` is a folder whose git repository is described."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "git": git_state(code),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hardware": _hardware(),
        "slurm": {name: value for name, value in sorted(os.environ.items()) if name in _SLURM},
        "packages": packages(),
    }


_SLURM = ("SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_RESTART_COUNT")


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch and whether tracked files differ, and untracked files; None outside a repository."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    status = _git(folder, "status", "--porcelain") or b""
    lines = status.decode(errors="replace").splitlines()
    return {
        "commit": commit.decode().strip(),
        "branch": (_git(folder, "branch", "--show-current") or b"").decode().strip() or None,
        "dirty": any(not line.startswith("??") for line in lines),
        "untracked": [line[3:] for line in lines if line.startswith("??")],
    }


def packages() -> dict[str, str]:
    """Return the installed packages with their versions."""
    return dict(sorted({str(each.metadata["Name"]): each.version for each in distributions()}.items(), key=_lower))


def _lower(item: tuple[str, str]) -> str:
    return item[0].lower()


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "gpus": [{"name": gpu.name, "memory_gib": round(gpu.total_memory / 2**30, 1)} for gpu in gpus],
        "cuda": torch.version.cuda,
    }


def _git(folder: Path, *arguments: str) -> bytes | None:
    """What git prints; None where there is no git or no repository."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.stem}{suffix}{path.suffix}")
