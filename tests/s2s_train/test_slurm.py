"""Real jobs on a real SLURM: chained ones with seeds of their own, one that is stopped and goes on, the scripts."""

import json
import os
import pty
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2s_train.run_folder import RunFolder
from s2s_train.slurm_job import Job
from tests.s2s_train.builders import write_config
from tests.s2s_train.slurm_task import seen_path
from tests.slurm_cluster import MISSING, WHY_SKIPPED, Cluster, slurm_cluster, wait_until

pytestmark = pytest.mark.skipif(bool(MISSING), reason=WHY_SKIPPED)

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "apps/train/slurm"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
START_S = 180  # two processes import torch on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as started:
        path = f"{Path(sys.executable).parent}:{started.env['PATH']}"
        started.env.update(PATH=path, PYTHONPATH=f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
        yield started


def write_job(folder: Path, corpus: str, name: str, **trainer: object) -> Path:
    """The app's own job script for two tasks, with the tiny model in place of the app's."""
    trainer = {"devices": -1, "limit_train_batches": 100000, "limit_val_batches": 0, "strategy": "ddp", **trainer}
    cfg = write_config(folder, corpus, trainer=trainer)
    text = Job(
        name=name,
        script=f"{name}.sub",
        cfg=str(cfg),
        overrides=[f"name={name}", "data.train_ds.num_workers=1"],
        tasks_per_node=2,
        cpus_per_task=2,
        chdir=str(folder),
        output=f"{folder}/{name}-%j.out",
    ).text()
    script = folder / f"{name}.sub"
    script.write_text(text.replace("python -m s2s_train fit", "python -m tests.s2s_train.slurm_task"))
    return script


def evidence(cluster: Cluster, job: str) -> str:
    shown = cluster.show(job)
    keys = ("JobState", "Restarts", "ExitCode", "RunTime", "NumTasks", "StartTime", "EndTime", "Dependency")
    return f"scontrol show job {job}: " + " ".join(f"{key}={shown.get(key)}" for key in keys)


def steps(folder: RunFolder) -> list[int]:
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [line["step"] for line in lines if "train_loss" in line]


def test_three_chained_jobs_of_two_ranks_each_with_its_seed(cluster, folder, corpus, record_property):
    script = write_job(folder, corpus, "chain", max_steps=100000)
    launcher = SCRIPTS / "auto_launcher_with_seed.sh"
    done = cluster.run(launcher, "-n3", "--time=10:00", script, "exp_manager.max_time_per_run='00:00:00:02'")
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    found = re.findall(r"job (\d+), data seed (\d+)(?:, after (\d+))?", done.stdout)
    jobs = [job for job, _, _ in found]
    assert [after for _, _, after in found] == ["", *jobs[:-1]]
    run = RunFolder(folder / "runs" / "chain")
    previous_end, last_step, seeds = "", 0, []
    for job, seed, _ in found:
        shown = cluster.wait_for(job, *ENDED, timeout_s=START_S)
        said = (folder / f"chain-{job}.out").read_text()
        record_property("evidence", evidence(cluster, job))
        print(evidence(cluster, job), said, sep="\n")
        assert shown["JobState"] == "COMPLETED", said
        assert shown["StartTime"] >= previous_end
        previous_end = shown["EndTime"]
        ranks = [[json.loads(line) for line in seen_path(run, job, rank).read_text().splitlines()] for rank in (0, 1)]
        assert [rank.pop(0) for rank in ranks] == [["seed", int(seed)]] * 2, "one seed in a job"
        taken = [step for step, _ in ranks[0]]
        assert taken == list(range(last_step, last_step + len(taken))), "goes on behind the job before"
        assert taken == [step for step, _ in ranks[1]]
        assert all(not set(mine) & set(theirs) for (_, mine), (_, theirs) in zip(*ranks, strict=True))
        assert ("resuming from" in said) == ("in a new order" in said) == bool(seeds)
        last_step += len(taken)
        seeds.append(seed)
    assert len(set(seeds)) == 3
    assert steps(run) == list(range(1, last_step + 1)), "no gap, no repeat"


def test_a_job_that_gets_sigterm_saves_is_requeued_and_goes_on_to_its_end(cluster, folder, corpus, record_property):
    script = write_job(folder, corpus, "stopped", max_steps=150)
    run = RunFolder(folder / "runs" / "stopped")
    job = cluster.run("sbatch", "--parsable", script).stdout.strip()
    output = folder / f"stopped-{job}.out"

    def told() -> str:
        return output.read_text() if output.exists() else "no output yet"

    def is_under_way() -> bool | None:
        assert cluster.show(job)["JobState"] not in ENDED, told()
        return (run.metrics.exists() and len(steps(run)) > 4) or None

    wait_until(is_under_way, "a few steps", START_S, told)
    assert not run.last_checkpoint.exists()
    cluster.run("scancel", "--signal=TERM", job)
    wait_until(lambda: cluster.show(job)["Restarts"] == "1" or None, "it is requeued", START_S, told)
    assert run.last_checkpoint.exists()
    record_property("evidence", evidence(cluster, job))
    print(evidence(cluster, job))
    shown = cluster.wait_for(job, *ENDED, timeout_s=2 * START_S)
    record_property("evidence", evidence(cluster, job))
    print(evidence(cluster, job), told(), sep="\n")
    assert shown["JobState"] == "COMPLETED", told()
    assert shown["Restarts"] == "1"
    stopped = re.search(r"SIGTERM: stopped at step (\d+)", told())
    assert stopped
    assert 4 < int(stopped[1]) < 150
    assert f"asking SLURM to requeue job {job}" in told()
    assert "resuming from" in told()
    assert "in a new order" not in told(), "the same job, the same data"
    assert steps(run) == list(range(1, 151)), "no gap, no repeat"
    for rank in (0, 1):
        taken = [json.loads(line)[0] for line in seen_path(run, job, rank).read_text().splitlines()]
        assert [step for step in taken if step != "seed"] == list(range(150)), "nothing is trained twice"


def test_devices_that_are_not_the_tasks_are_told_before_training(cluster, folder, corpus):
    script = write_job(folder, corpus, "other")
    text = script.read_text().replace('trainer.devices="$SLURM_NTASKS_PER_NODE"', "trainer.devices=4")
    script.write_text(text)
    job = cluster.run("sbatch", "--parsable", script).stdout.strip()
    cluster.wait_for(job, *ENDED, timeout_s=START_S)
    said = (folder / f"other-{job}.out").read_text()
    assert "trainer.devices is 4, but SLURM runs 2 tasks on each node: set trainer.devices=2" in said
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["job.sub"], "-n is '': give the number of jobs"),
        (["-n0", "job.sub"], "-n is '0'"),
        (["-n", "two", "job.sub"], "-n is 'two'"),
        (["-n2"], "no JOB.sub given"),
        (["-n2", "nowhere.sub"], "no job script nowhere.sub"),
        (["-n2", "-p", "main", "job.sub"], "unknown option -p"),
        (["-n2", "job.sub", "--time=1:00:00"], "isn't key=value; options of sbatch come before job.sub"),
        (["-n2", "--partition=nowhere", "job.sub"], "sbatch refused job 1 of 2"),
    ],
)
def test_bad_input_of_the_launcher_is_told_and_submits_nothing(cluster, folder, words, error):
    (folder / "job.sub").write_text("#!/bin/sh\n")
    done = cluster.run(SCRIPTS / "auto_launcher_with_seed.sh", *words)
    assert done.returncode == 2
    assert error in done.stderr
    assert not done.stdout


def test_an_interactive_node_runs_a_command_on_gpus_under_a_name_that_leaves_processes_to_the_run(cluster, folder):
    command = [str(SCRIPTS / "get_interactive_node.sh"), "-g2", "-c2", "-t5:00", "-p", "main", "--"]
    command += [
        "bash",
        "-c",
        'echo "in job $SLURM_JOB_NAME with $SLURM_GPUS_ON_NODE GPUs, $SLURM_CPUS_PER_TASK cores"',
    ]
    assert "in job interactive with 2 GPUs, 2 cores" in in_terminal(cluster, command)


def in_terminal(cluster: Cluster, command: list[str]) -> str:
    """What a command writes to the terminal that it runs in."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, cluster.env)
    said = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            part = b""
        if not part:
            break
        said += part
    os.waitpid(pid, 0)
    os.close(terminal)
    return said.decode()


@pytest.mark.parametrize("script", ["auto_launcher_with_seed.sh", "get_interactive_node.sh", "run.sh"])
def test_scripts_teach(script, cluster):
    for flag in ("-h", "--help"):
        done = cluster.run(SCRIPTS / script, flag)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: {script}")
