"""How many processes SLURM runs, and that `trainer.devices` and `trainer.num_nodes` agree with it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from s2s_train.trainer_config import TrainerConfig

INTERACTIVE = ("bash", "interactive")  # names of jobs in which Lightning doesn't look for srun's tasks
_ALL = ("auto", -1, "-1")


@dataclass(frozen=True)
class Allocation:
    """One task is one process of the run."""

    num_nodes: int
    tasks_per_node: int


def on_allocation(cfg: TrainerConfig, env: Mapping[str, str] = os.environ) -> TrainerConfig:
    """Fill in `devices` (auto, -1) and `num_nodes` (1, the default) under srun; elsewhere return `cfg` as it is.

    Raises:
        ValueError: other numbers are configured than SLURM runs, or the run is in a job of several tasks, but not
            under srun.
    """
    found = find_allocation(env)
    if found is None:
        return cfg
    devices = len(cfg.devices) if isinstance(cfg.devices, list) else cfg.devices
    if devices not in _ALL and str(devices) != str(found.tasks_per_node):
        raise ValueError(
            f"trainer.devices is {cfg.devices}, but SLURM runs {found.tasks_per_node} tasks on each node: set"
            f" trainer.devices={found.tasks_per_node}, or ask SLURM for --ntasks-per-node={devices}"
        )
    if cfg.num_nodes not in (1, found.num_nodes):
        raise ValueError(
            f"trainer.num_nodes is {cfg.num_nodes}, but SLURM runs on {found.num_nodes}: set"
            f" trainer.num_nodes={found.num_nodes}, or ask SLURM for --nodes={cfg.num_nodes}"
        )
    filled: Any = found.tasks_per_node if devices in _ALL else cfg.devices
    return replace(cfg, devices=filled, num_nodes=found.num_nodes)


def find_allocation(env: Mapping[str, str]) -> Allocation | None:
    """What SLURM's variables say; None outside SLURM, under torchrun, and in an interactive shell.

    Raises:
        ValueError: several tasks without srun, or not as many on each node.
    """
    if "SLURM_NTASKS" not in env or "TORCHELASTIC_RUN_ID" in env or env.get("SLURM_JOB_NAME") in INTERACTIVE:
        return None
    num_tasks, num_nodes = int(env["SLURM_NTASKS"]), int(env.get("SLURM_NNODES", 1))
    if num_tasks > 1 and "SLURM_STEP_ID" not in env:  # the others would never come, and the run would wait for them
        raise ValueError(f"this SLURM job has {num_tasks} tasks, but srun didn't start this one: put srun in front")
    if num_tasks > 1 and "SLURM_NTASKS_PER_NODE" not in env:
        raise ValueError(
            f"SLURM runs {num_tasks} tasks on {num_nodes} node(s), but wasn't told how many on each: use"
            f" --ntasks-per-node={max(num_tasks // num_nodes, 1)} instead of --ntasks"
        )
    per_node = int(env.get("SLURM_NTASKS_PER_NODE", 1))
    if per_node * num_nodes != num_tasks:
        raise ValueError(
            f"SLURM runs {num_tasks} tasks, which isn't --ntasks-per-node={per_node} on {num_nodes} node(s):"
            " leave --ntasks out"
        )
    return Allocation(num_nodes, per_node)
