"""What one task of a SLURM job runs in tests: the app's `fit` with the tiny model, which needs no NeMo."""

import json
import os
import sys
import time
from pathlib import Path

import torch

from s2s_data import DuplexBatch
from s2s_train.config import AppConfig, load_config
from s2s_train.fit import RunStopped, fit
from s2s_train.run_folder import RunFolder
from tests.s2s_train.builders import TinyModel

STEP_S = 0.02  # so that a run lasts long enough to be stopped in its middle


class TaskModel(TinyModel):
    """Writes down the job's data seed first, and then this rank's dialogues of each step."""

    def __init__(self, cfg: AppConfig) -> None:
        super().__init__(cfg)
        self.seen_path = seen_path(RunFolder.of(cfg), os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_PROCID"]))
        self.seed = cfg.data.train_ds.shard_seed

    def on_train_start(self) -> None:
        self.seen_path.parent.mkdir(parents=True, exist_ok=True)  # rank 0 may not have come so far
        with self.seen_path.open("a") as file:
            file.write(json.dumps(["seed", self.seed]) + "\n")

    def training_step(self, batch: DuplexBatch, batch_idx: int) -> torch.Tensor:
        time.sleep(STEP_S)
        return super().training_step(batch, batch_idx)


def seen_path(folder: RunFolder, job: str, rank: int) -> Path:
    return folder.path / f"seen-{job}-{rank}.jsonl"


def main(path: str, *overrides: str) -> int:
    torch.set_num_threads(1)
    try:
        fit(load_config(Path(path), overrides), TaskModel, lambda cfg, folder: [])
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
