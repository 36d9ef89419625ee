"""`launch`: check a config against the nodes it will run on, write its sbatch script, submit it."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from s2s_parallel.mesh import resolve_mesh
from s2s_train.allocation import INTERACTIVE
from s2s_train.cli_parts import add_command, add_config
from s2s_train.config import AppConfig, load_named, mesh_arguments, mesh_sizes
from s2s_train.run_folder import RunFolder
from s2s_train.slurm_job import DATA_SEED, WARNING_S, Job, seconds_of

_EXAMPLES = """
examples:
  launch my.yaml --nodes 4                                  on 32 GPUs, back in the queue every 4 hours until it is done
  launch my.yaml --nodes 4 --dry-run                        print the job, write and submit nothing
  launch my.yaml --jobs 8 --time 2:00:00 --account speech   8 jobs in a row, each with a data seed of its own
  launch my.yaml --nodes 2 --gpus-per-node 4 trainer.max_steps=100000 name=long
  launch my.yaml --container nvcr.io/nvidia/pytorch:25.10-py3 --container-mounts /data:/data

Run it on the login node, in the folder from which the paths of CFG are meant. It writes runs/NAME/slurm/NAME.sub, to
which the job's output goes too (JOBID.out). docs/slurm.md tells more.
Exit codes: as for fit.
"""


class IntermixedParser(argparse.ArgumentParser):
    """Takes KEY=VALUE before, between and behind flags; argparse alone takes them in one place."""

    _is_inside = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse has it, which calls this method itself."""
        if self._is_inside or not self._get_positional_actions():
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False


@dataclass(frozen=True)
class LaunchArgs:
    """The command's arguments."""

    cfg: Path
    overrides: Sequence[str] = ()
    nodes: int = 1
    gpus_per_node: int = 8
    cpus_per_task: int | None = None
    time: str = "4:00:00"
    account: str | None = None
    partition: str | None = None
    container: str | None = None
    container_mounts: str | None = None
    jobs: int = 1
    dry_run: bool = False


def add_launch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    launch = add_command(
        commands,
        "launch",
        "submit a run to SLURM",
        "Check CFG and its mesh against the nodes, write the sbatch script and submit it.",
        _EXAMPLES,
    )
    add_config(launch)
    launch.add_argument("--nodes", type=int, default=1, metavar="N", help="machines (default: 1)")
    launch.add_argument(
        "--gpus-per-node",
        type=int,
        default=8,
        metavar="N",
        help="processes on each, one a GPU (default: 8); with trainer.accelerator=cpu they take no GPU",
    )
    launch.add_argument(
        "--cpus-per-task",
        type=int,
        metavar="N",
        help="cores of each process (default: data.train_ds.num_workers + 2)",
    )
    launch.add_argument("--time", default="4:00:00", help="limit of each job (default: 4:00:00)")
    launch.add_argument("--account", metavar="A", help="SLURM's account")
    launch.add_argument("--partition", metavar="P", help="SLURM's partition")
    launch.add_argument("--container", metavar="IMAGE", help="run in this image (needs the pyxis plugin of srun)")
    launch.add_argument("--container-mounts", metavar="A:B,...", help="more folders that the container sees")
    launch.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="so many jobs, one after the other, each going on from the one before with a data seed of its own",
    )
    launch.add_argument("--dry-run", action="store_true", help="print the script and the commands, do nothing")
    launch.set_defaults(run_command=run_launch)


def run_launch(args: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    known = {name: getattr(args, name) for name in LaunchArgs.__dataclass_fields__}
    launch(LaunchArgs(**known))
    return 0


def launch(args: LaunchArgs) -> list[str]:
    """Check, write and submit; return the ids of the submitted jobs.

    Raises:
        ValueError: what the user can mend: the config, its mesh on so many processes, flags, or sbatch's refusal.
    """
    cfg = checked_config(args)
    folder = RunFolder.of(cfg).path / "slurm"
    name = Path(str(cfg.name)).name
    if name in INTERACTIVE:
        raise ValueError(f"name={name}: a job of this name counts as an interactive shell, give the run another one")
    script = folder / f"{name}.sub"
    job = Job(
        name=name,
        script=str(script),
        cfg=str(args.cfg),
        overrides=args.overrides,
        nodes=args.nodes,
        tasks_per_node=args.gpus_per_node,
        on_gpus=cfg.trainer.accelerator != "cpu",
        cpus_per_task=args.cpus_per_task or cfg.data.train_ds.num_workers + 2,
        time=args.time,
        account=args.account,
        partition=args.partition,
        container=args.container,
        container_mounts=args.container_mounts,
        chdir=str(Path.cwd()),
        output=f"{str(folder).replace('%', '%%')}/%j.out",
    )
    text = job.text()
    seeds = [secrets.randbelow(2**31) for _ in range(args.jobs)] if args.jobs > 1 else [None]
    _tell_of_an_early_end(cfg, args)
    if args.dry_run:
        print(f"# {script}\n{text}")
        for number, seed in enumerate(seeds):
            print(" ".join(_as_shell(_command(script, f"JOB{number}" if number else None, seed), seed)))
        return []
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no sbatch here: run this on the cluster's login node, or add --dry-run to see the job"
        )
    folder.mkdir(parents=True, exist_ok=True)
    script.write_text(text)
    return _submit_all(script, seeds)


def checked_config(args: LaunchArgs) -> AppConfig:
    """Read the config as the job will, on `nodes` × `gpus_per_node` processes.

    Raises:
        ValueError: a flag out of range, devices or nodes that the flags contradict, or a mesh of another size.
    """
    _check_flags(args)
    asked = {"num_nodes": args.nodes, "devices": args.gpus_per_node}
    cfg = load_named(args.cfg, [*(f"trainer.{key}={value}" for key, value in asked.items()), *args.overrides])
    for key, flag in (("num_nodes", "--nodes"), ("devices", "--gpus-per-node")):
        configured = getattr(cfg.trainer, key)
        if str(configured) != str(asked[key]):
            raise ValueError(f"trainer.{key}={configured}, but {flag} is {asked[key]}: leave trainer.{key} out")
    mesh = mesh_arguments(cfg.trainer.strategy)
    if mesh is not None:
        resolve_mesh(args.nodes * args.gpus_per_node, **mesh_sizes(mesh))
    return cfg


def _tell_of_an_early_end(cfg: AppConfig, args: LaunchArgs) -> None:
    """Say that a single job won't be requeued, where the run ends itself before SLURM warns it."""
    given = cfg.exp_manager.max_time_per_run
    if given is None or args.jobs > 1:
        return
    from s2s_train.stop_signals import seconds  # imports Lightning

    if (seconds(given) or 0) < seconds_of(args.time) - WARNING_S:
        print(
            f"note: exp_manager.max_time_per_run={given} ends the run before SLURM's warning of --time {args.time}, and"
            " the job isn't requeued then: set it to null, or give --jobs N"
        )


def _check_flags(args: LaunchArgs) -> None:
    for flag, number in (
        ("--nodes", args.nodes),
        ("--gpus-per-node", args.gpus_per_node),
        ("--cpus-per-task", args.cpus_per_task),
        ("--jobs", args.jobs),
    ):
        if number is not None and number < 1:
            raise ValueError(f"{flag} is {number}: use 1 or more")
    if seconds_of(args.time) <= 2 * WARNING_S:
        raise ValueError(
            f"--time {args.time} is {seconds_of(args.time)} s: SLURM warns the run {WARNING_S} s before its end, so"
            f" that it saves; give it more than {2 * WARNING_S} s"
        )
    if args.container_mounts and not args.container:
        raise ValueError("--container-mounts is given without --container")


def _command(script: Path, previous: str | None, seed: int | None) -> list[str]:
    # Not --export=ALL,NAME=VALUE: sbatch then has the node load the user's login shell.
    after = [f"--dependency=afterany:{previous}"] if previous else []
    # A chained job that runs out of time leaves the rest to the next one, with its own seed.
    chained = [] if seed is None else ["exp_manager.requeue=false"]
    return ["sbatch", "--parsable", "--export=ALL", *after, str(script), *chained]


def _as_shell(command: Sequence[str], seed: int | None) -> list[str]:
    return [*([] if seed is None else [f"{DATA_SEED}={seed}"]), *map(shlex.quote, command)]


def _submit_all(script: Path, seeds: Sequence[int | None]) -> list[str]:
    ids: list[str] = []
    for seed in seeds:
        env = os.environ | ({} if seed is None else {DATA_SEED: str(seed)})
        command = _command(script, ids[-1] if ids else None, seed)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            before = f"; jobs {' '.join(ids)} are submitted already" if ids else ""
            raise ValueError(f"sbatch refused {script}: {done.stderr.strip()}{before}")
        ids.append(done.stdout.strip().split(";")[0])
        said = "" if seed is None else f", data seed {seed}" + (f", after {ids[-2]}" if len(ids) > 1 else "")
        print(f"job {ids[-1]}{said}: {script}")
    return ids
