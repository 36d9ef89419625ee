"""What `launch` checks, writes and prints where there is no SLURM, and how a run reads its allocation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from s2s_train.allocation import Allocation, find_allocation, on_allocation
from s2s_train.cli import main
from s2s_train.slurm_job import Job, seconds_of
from s2s_train.trainer_config import TrainerConfig
from tests.s2s_train.builders import write_config

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "apps/train/slurm"


@pytest.fixture
def cfg(folder: Path, corpus: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A config without `trainer.devices`, on a machine without sbatch."""
    monkeypatch.setenv("PATH", f"{folder}/bin")
    return str(write_config(folder, corpus, trainer={"devices": -1, "accelerator": "gpu"}))


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["launch", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_the_checked_in_script_is_what_launch_writes():
    script = "apps/train/slurm/s2s_tinyllama_repro.sub"
    cfg = "apps/train/conf/s2s_tinyllama_repro.yaml"
    assert (ROOT / cfg).is_file()
    job = Job(name="s2s_tinyllama_repro", script=script, cfg=cfg, nodes=4, cpus_per_task=6)
    assert (ROOT / script).read_text() == job.text()


def test_the_checked_in_script_ends_outside_a_repository(tmp_path):
    text = "srun() { echo started; }\n" + (SCRIPTS / "s2s_tinyllama_repro.sub").read_text()
    env = {"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    env |= {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "8"}
    done = subprocess.run(["/bin/bash", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "started" not in done.stdout


def test_dry_run_prints_script_and_commands_and_writes_nothing(cfg, folder, capsys):
    flags = ["--nodes", "2", "--gpus-per-node", "4", "--time", "1-00:00:00", "--account", "speech", "--jobs", "3"]
    assert main(["launch", cfg, "name=big", *flags, "--dry-run", "trainer.max_steps=9"]) == 0
    text = capsys.readouterr().out
    for part in (
        "#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=2\n",
        "#SBATCH --time=1-00:00:00 --signal=USR1@180\n",
        "#SBATCH --account=speech\n",
        f"python -m s2s_train fit {cfg} name=big trainer.max_steps=9 ",
    ):
        assert part in text
    commands = [line for line in text.splitlines() if line.startswith("S2S_DATA_SEED=")]
    assert len({line.split()[0] for line in commands}) == 3, "a seed for each job"
    assert ["afterany" in line for line in commands] == [False, True, True]
    assert not (folder / "runs").exists()


def test_the_script_is_sound_shell_whatever_is_in_its_values(cfg, folder, capsys):
    odd = 'exp_manager.wandb_logger_kwargs={name: "it\'s $HOME"}'
    flags = ["--container", "reg/image:1 x", "--container-mounts", "/data:/data"]
    assert main(["launch", cfg, "name=odd", odd, *flags, "--dry-run"]) == 0
    text = capsys.readouterr().out.rpartition("sbatch --parsable")[0]
    fake_srun = 'srun() { while [ "$1" != fit ]; do shift; done; printf "%s\\n" "$@"; }\n'
    env = {"SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "8", "S2S_DATA_SEED": "5"}
    done = subprocess.run(
        ["/bin/bash", "-s", "trainer.max_steps=3"], input=fake_srun + text, env=env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "fit",
        cfg,
        "name=odd",
        odd,
        "trainer.num_nodes=1",
        "trainer.devices=8",
        "data.train_ds.shard_seed=5",
        "trainer.max_steps=3",
    ]


def test_a_name_with_folders_and_signs_is_submitted(cfg, folder, capsys, monkeypatch):
    (folder / "bin").mkdir()
    (folder / "bin" / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (folder / "bin" / "sbatch").chmod(0o755)
    assert main(["launch", cfg, "name=group/5%j"]) == 0
    script = folder / "runs/group/5%j/slurm/5%j.sub"
    assert f"job 7: {script}" in capsys.readouterr().out
    assert "/group/5%%j/slurm/%j.out" in script.read_text()


def test_a_run_that_ends_before_slurm_s_warning_is_told(cfg, capsys):
    def is_told(*argv: str) -> bool:
        assert main(["launch", cfg, "--dry-run", *argv]) == 0
        return "the job isn't requeued then: set it to null, or give --jobs N" in capsys.readouterr().out

    early = "exp_manager.max_time_per_run='00:03:50:00'"
    assert is_told(early)
    assert not any([is_told(early, "--time=3:50:00"), is_told(early, "--jobs=2"), is_told()])


MESH = "trainer.strategy={_target_: s2s_parallel.strategy.MeshStrategy, tensor_parallel_size: 3}"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--nodes", "0"], "--nodes is 0: use 1 or more"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--time", "5:00"], "--time 5:00 is 300 s: SLURM warns the run 180 s before its end"),
        (["--time", "soon"], "--time soon: SLURM takes minutes"),
        (["--container-mounts", "/a:/a"], "--container-mounts is given without --container"),
        (["name=interactive"], "name=interactive: a job of this name counts as an interactive shell"),
        (['name="a\\ntouch b"'], "has a line break, which a job script can't take"),
        (["--account", "a\ntouch b"], "has a line break"),
        (["trainer.devices=2"], "trainer.devices=2, but --gpus-per-node is 8"),
        (["trainer.num_nodes=2", "--nodes", "4"], "trainer.num_nodes=2, but --nodes is 4"),
        (["--nodes", "2", MESH], "data_parallel_size (5) × tensor_parallel_size (3) is 15, but the run has 16"),
        (["trainer.max_stps=1"], "did you mean trainer.max_steps?"),
        ([], "there is no sbatch here: run this on the cluster's login node, or add --dry-run"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_writes_nothing(cfg, folder, capsys, argv, error):
    assert error in told(capsys, cfg, *argv)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:02:03", 3723), ("1-2", 93600), ("1-2:3", 93780), ("1-02:03:04", 93784)],
)
def test_times_mean_what_slurm_says(time, seconds):
    assert seconds_of(time) == seconds


UNDER_SRUN = {
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_NAME": "x",
}


def test_devices_and_nodes_are_those_of_the_allocation():
    for devices in ("auto", -1, 4):
        seen = on_allocation(TrainerConfig(devices=devices), UNDER_SRUN)
        assert (seen.devices, seen.num_nodes) == (4, 2)
    unlike = ({}, UNDER_SRUN | {"SLURM_JOB_NAME": "interactive"}, UNDER_SRUN | {"TORCHELASTIC_RUN_ID": "x"})
    for env in unlike:
        assert on_allocation(TrainerConfig(devices=1), env) == TrainerConfig(devices=1)
    assert find_allocation({"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "x"}) == Allocation(1, 1)


@pytest.mark.parametrize(
    ("cfg", "env", "error"),
    [
        ({"devices": 8}, {}, "trainer.devices is 8, but SLURM runs 4 tasks on each node: set trainer.devices=4"),
        ({"num_nodes": 3}, {}, "trainer.num_nodes is 3, but SLURM runs on 2: set trainer.num_nodes=2"),
        ({}, {"SLURM_STEP_ID": None}, "this SLURM job has 8 tasks, but srun didn't start this one"),
        ({}, {"SLURM_NTASKS_PER_NODE": None}, "use --ntasks-per-node=4 instead of --ntasks"),
        ({}, {"SLURM_NTASKS": "7"}, "SLURM runs 7 tasks, which isn't --ntasks-per-node=4 on 2"),
    ],
)
def test_other_numbers_than_the_allocation_has_are_refused(cfg, env, error):
    environment = {name: value for name, value in (UNDER_SRUN | env).items() if value is not None}
    with pytest.raises(ValueError, match=error):
        on_allocation(TrainerConfig(**cfg), environment)


def run_script(*words: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / "run.sh"), *words]
    env = {"PATH": path, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "no CFG given"),
        (["nowhere.yaml"], "no config file nowhere.yaml"),
        (["-g", "none", "tiny.yaml"], "-g is 'none': give a number of processes"),
        (["--profile", "tiny.yaml"], "unknown option --profile"),
        (["--nsys", "tiny.yaml"], "--nsys: there is no nsys here"),
    ],
)
def test_bad_input_of_run_is_told(folder, words, error):
    (folder / "tiny.yaml").touch()
    done = run_script(*words, path="/usr/bin:/bin")
    assert done.returncode == 2
    assert error in done.stderr


def test_run_starts_fit_by_torchrun(folder, corpus):
    config = str(write_config(folder, corpus))
    done = run_script("-g2", config, "trainer.max_stps=1", path=f"{Path(sys.executable).parent}:/usr/bin:/bin")
    assert done.returncode != 0
    assert "did you mean trainer.max_steps?" in done.stderr
    assert "torch.distributed" in done.stderr, "which says that a process of its own failed"
