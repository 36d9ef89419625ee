"""A real SLURM of one node, with two GPUs that are empty files, started by whoever runs the tests."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.s2s_parallel.trainers import free_port

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
_SBIN = f"{os.environ['PATH']}:/usr/sbin:/sbin"
MISSING = [name for name in _PROGRAMS if shutil.which(name, path=_SBIN) is None]
WHY_SKIPPED = f"SLURM is not installed ({', '.join(MISSING)} missing): apt-get install slurm-wlm munge"

# cred_expire (5 s at least): a requeued job starts again when its credential is void, which is else after two minutes.
_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MpiDefault=none
KillWait=30
SchedulerParameters=sched_min_interval=100000,sched_interval=1
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Cluster:
    """Where its files are, and the environment in which SLURM's commands speak to it."""

    folder: Path
    env: dict[str, str]

    def run(self, *command: str | Path, **more_env: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of the cluster would, in the current folder."""
        words = [str(word) for word in command]
        return subprocess.run(words, env=self.env | more_env, capture_output=True, text=True, check=False, timeout=120)

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(self, job: str, *states: str, timeout_s: float) -> dict[str, str]:
        """Wait until the job is in one of these states; return what scontrol says then."""

        def seen() -> dict[str, str] | None:
            shown = self.show(job)
            return shown if shown.get("JobState") in states else None

        return wait_until(seen, f"job {job} is {' or '.join(states)}", timeout_s, lambda: str(self.show(job)))


def wait_until(
    look: Callable[[], Found | None], what: str, timeout_s: float, tell: Callable[[], str] = lambda: ""
) -> Found:
    """Return what `look` finds; fail after `timeout_s`, quoting `tell`."""
    end = time.monotonic() + timeout_s
    while (found := look()) is None:
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}\n{tell()}"
        time.sleep(0.2)
    return found


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster whose files lie in `folder`, and end it with all its jobs."""
    folder.chmod(0o755)  # munged listens where others may look, and keeps its key where they may not
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    for number in range(2):
        (folder / f"gpu{number}").touch()
    host = socket.gethostname().split(".")[0]
    ports = {"ctld_port": free_port(), "d_port": free_port()}
    conf = folder / "slurm.conf"
    conf.write_text(_CONF.format(host=host, user=getpass.getuser(), folder=folder, **ports))
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-1]\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "S2S_"))}
    cluster = Cluster(folder, env | {"PATH": _SBIN, "SLURM_CONF": str(conf)})
    try:
        _start_munge(cluster)
        _start(cluster, "slurmctld")
        _start(cluster, "slurmd")
        wait_until(lambda: _is_idle(cluster), "a node is idle", 60, lambda: logs(folder))
        yield cluster
    finally:
        try:
            _cancel_all(cluster)
        finally:
            for name in ("slurmd", "slurmctld", "munged"):
                _end(folder / f"{name}.pid")


def logs(folder: Path) -> str:
    """The ends of the daemons' logs."""
    return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob("*.log")))


def _start_munge(cluster: Cluster) -> None:
    folder = cluster.folder
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    places = {"key-file": key, "socket": folder / "munge" / "socket", "seed-file": folder / "munge" / "seed"}
    places |= {"pid-file": folder / "munged.pid", "log-file": folder / "munged.log"}
    # force: folders of tests lie below /tmp, where anyone may write
    _start(cluster, "munged", "--force", *(f"--{name}={path}" for name, path in places.items()))


def _start(cluster: Cluster, *command: str) -> None:
    done = cluster.run(*command)
    assert done.returncode == 0, f"{command[0]}: {done.stderr}\n{logs(cluster.folder)}"


def _cancel_all(cluster: Cluster) -> None:
    cluster.run("scancel", "--signal=KILL", "--full", "--user", getpass.getuser())
    cluster.run("scancel", "--user", getpass.getuser())
    wait_until(lambda: None if cluster.run("squeue", "--noheader").stdout else True, "no jobs", 60)


def _is_idle(cluster: Cluster) -> bool | None:
    return cluster.run("sinfo", "--noheader", "--format=%T").stdout.strip() == "idle" or None


def _end(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text())
    os.kill(pid, 15)
    wait_until(lambda: None if Path(f"/proc/{pid}").exists() else True, f"{pid_file.stem} has ended", 30)
