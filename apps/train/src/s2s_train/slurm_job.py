"""A run as an sbatch script, and how long SLURM lets it run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

WARNING_S = 180  # SLURM warns a run so long before its time is over; it saves then
DATA_SEED = "S2S_DATA_SEED"  # the job's own order of the data, the same for all of its processes

_TIME = re.compile(r"(?:(?P<days>\d+)-(?P<day_clock>\d+(?::\d+){0,2})|(?P<clock>\d+(?::\d+){0,2}))")


@dataclass(frozen=True)
class Job:
    """What a script asks SLURM for, and what it starts."""

    name: str
    script: str  # where it will be, for its own comment
    cfg: str
    overrides: Sequence[str] = ()
    nodes: int = 1
    tasks_per_node: int = 8
    on_gpus: bool = True  # one a task
    cpus_per_task: int = 10
    time: str = "4:00:00"
    account: str | None = None
    partition: str | None = None
    container: str | None = None
    container_mounts: str | None = None
    chdir: str | None = None  # None: the repository that sbatch is called in
    output: str = "%x-%j.out"

    def text(self) -> str:
        """Return the script.

        Raises:
            ValueError: a line break in what stands in a comment, whose next line would be run.
        """
        for value in (self.name, self.script, self.output, *self._named().values()):
            if value and len(value.splitlines()) > 1:
                raise ValueError(
                    f"{value!r} has a line break, which a job script can't take: give another name or path"
                )
        lines = [
            "#!/usr/bin/env bash",
            f"# One job: sbatch {shlex.quote(self.script)} [key=value ...]",
            "# Eight jobs in a row, each with another order of the data:",
            f"# apps/train/slurm/auto_launcher_with_seed.sh -n8 {shlex.quote(self.script)} [key=value ...]",
            *(f"#SBATCH {line}" for line in self._directives()),
            "set -euo pipefail",
            *self._command(),
        ]
        return "\n".join(lines) + "\n"

    def _directives(self) -> list[str]:
        gpus = f" --gpus-per-node={self.tasks_per_node}" if self.on_gpus else ""
        return [
            f"--job-name={shlex.quote(self.name)}",
            f"--nodes={self.nodes} --ntasks-per-node={self.tasks_per_node}{gpus} --cpus-per-task={self.cpus_per_task}",
            f"--time={self.time} --signal=USR1@{WARNING_S}",
            f"--requeue --open-mode=append --output={shlex.quote(self.output)}",
            *(f"--{option}={shlex.quote(value)}" for option, value in self._named().items() if value),
        ]

    def _named(self) -> dict[str, str | None]:
        return {"account": self.account, "partition": self.partition, "chdir": self.chdir}

    def _command(self) -> list[str]:
        srun = 'srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK"'
        if self.container:
            mounts = f",{shlex.quote(self.container_mounts)}" if self.container_mounts else ""
            srun += f' --container-image={shlex.quote(self.container)} --container-mounts="$PWD:$PWD"{mounts}'
            srun += ' --container-workdir="$PWD"'
        # In two lines: `cd ""` succeeds, and the job would go on outside a repository.
        found = [
            "root=$(git rev-parse --show-toplevel)",
            'cd "$root"  # from wherever in the repository sbatch was called',
        ]
        root = [] if self.chdir else found
        path = [] if self.container else ['PATH="$PWD/.venv/bin:$PATH"']
        given = " ".join(shlex.quote(word) for word in (self.cfg, *self.overrides))
        return [
            *root,
            *path,
            f"{srun} \\",
            f"  python -m s2s_train fit {given} \\",
            '  trainer.num_nodes="$SLURM_JOB_NUM_NODES" trainer.devices="$SLURM_NTASKS_PER_NODE" \\',
            f'  ${{{DATA_SEED}:+data.train_ds.shard_seed="${DATA_SEED}"}} "$@"',
        ]


def seconds_of(time: str) -> int:
    """SLURM's time limit in seconds: MINUTES, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ValueError: it isn't one of these.
    """
    matched = _TIME.fullmatch(time)
    if matched is None:
        raise ValueError(f"--time {time}: SLURM takes minutes, H:MM:SS or D-HH:MM:SS, such as 4:00:00")
    clock = [int(part) for part in (matched["day_clock"] or matched["clock"]).split(":")]
    if matched["days"]:  # starts at hours
        hours, minutes, seconds = (*clock, 0, 0)[:3]
    else:  # one number is minutes, two are minutes and seconds
        hours, minutes, seconds = {1: (0, *clock, 0), 2: (0, *clock), 3: clock}[len(clock)]
    return ((int(matched["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
