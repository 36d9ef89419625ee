"""Which jobs of a real SLURM go back to their queue when they are signalled."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import s2s_train
from tests.slurm_cluster import MISSING, WHY_SKIPPED, Cluster, slurm_cluster, wait_until

pytestmark = pytest.mark.skipif(bool(MISSING), reason=WHY_SKIPPED)

WAIT_S = 60
_TASK = """
import signal, sys, time
from pathlib import Path
from s2s_train.requeue import requeue, slurm_job

def stop(*_):
    job = slurm_job()
    Path(f"refused-{job}").write_text(requeue(job))
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
Path(f"started-{slurm_job()}").touch()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as started:
        started.env["PYTHONPATH"] = str(Path(s2s_train.__file__).parents[1])
        yield started


def started_job(cluster: Cluster, folder: Path, name: str, *options: str) -> str:
    """Submit a job that asks to be requeued on SIGTERM; return its id when it listens."""
    (folder / "task.py").write_text(_TASK)
    script = folder / "job.sub"
    script.write_text(f"#!/bin/bash\nsrun --ntasks=1 {sys.executable} task.py\n")
    job = cluster.run("sbatch", "--parsable", f"--chdir={folder}", *options, script).stdout.strip()
    wait_until(lambda: (folder / f"started-{name.format(job)}").exists() or None, "the task runs", WAIT_S)
    return job


def refusal(folder: Path, job: str) -> str:
    """Why `job` wasn't requeued; "" if it was."""
    path = folder / f"refused-{job}"
    wait_until(lambda: path.exists() or None, "the task has asked", WAIT_S)
    return path.read_text()


def test_a_job_that_gets_sigterm_while_it_runs_is_requeued(cluster, folder):
    job = started_job(cluster, folder, "{}", "--requeue")
    cluster.run("scancel", "--signal=TERM", job)
    wait_until(lambda: cluster.show(job).get("Restarts") == "1" or None, "it is requeued", WAIT_S)
    cluster.run("scancel", job)


def test_one_task_of_an_array_is_requeued_alone(cluster, folder):
    job = started_job(cluster, folder, "{}_1", "--requeue", "--array=1-2")
    wait_until(lambda: (folder / f"started-{job}_2").exists() or None, "both tasks run", WAIT_S)
    cluster.run("scancel", "--signal=TERM", f"{job}_2")
    wait_until(lambda: cluster.show(f"{job}_2").get("Restarts") == "1" or None, "it is requeued", WAIT_S)
    assert cluster.show(f"{job}_1")["Restarts"] == "0"
    assert cluster.show(f"{job}_1")["JobState"] == "RUNNING"
    cluster.run("scancel", job)


def test_a_job_that_is_cancelled_stays_cancelled(cluster, folder):
    job = started_job(cluster, folder, "{}", "--requeue")
    cluster.run("scancel", job)
    assert "not RUNNING" in refusal(folder, job)
    cluster.wait_for(job, "CANCELLED", timeout_s=WAIT_S)


def test_a_job_that_may_not_be_requeued_is_told_why(cluster, folder):
    job = started_job(cluster, folder, "{}", "--no-requeue")
    cluster.run("scancel", "--signal=TERM", job)
    assert f"scontrol requeue {job}: " in refusal(folder, job)
