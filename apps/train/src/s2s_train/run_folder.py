"""A run's folder: what is where, and which checkpoint to go on from."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from s2s_parallel.atomic_file import write_atomically
from s2s_parallel.checkpoint_folder import recover, whole_path
from s2s_train.config import AppConfig
from s2s_train.config_errors import as_yaml
from s2s_train.exp_config import ExpConfig

DEFAULT_RUNS_DIR = "runs"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @classmethod
    def of(cls, cfg: AppConfig) -> RunFolder:
        """Return the folder that `cfg` names: explicit_log_dir, or exp_dir/name, or runs/name.

        Raises:
            ValueError: no name is given anywhere.
        """
        exp = cfg.exp_manager
        if exp.explicit_log_dir:
            return cls(Path(exp.explicit_log_dir))
        name = cfg.name or exp.name
        if not name:
            raise ValueError("the run has no name: add name=MY_RUN")
        return cls(Path(exp.exp_dir or DEFAULT_RUNS_DIR) / name)

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON object a log step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of last.ckpt and the best ones."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint a run resumes from."""
        return self.checkpoints / "last.ckpt"

    @property
    def samples(self) -> Path:
        """Folder of generated audio."""
        return self.path / "samples"

    @property
    def report(self) -> Path:
        """The listening report."""
        return self.path / "report.html"

    def prepare(self, cfg: AppConfig) -> None:
        """Make the folders and write the resolved config."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.samples.mkdir(exist_ok=True)
        write_atomically(self.config, lambda file: file.write(as_yaml(cfg).encode()))

    def checkpoint_to_resume(self, exp: ExpConfig) -> Path | None:
        """Return the checkpoint to go on from, None to start anew.

        The folder's own goes first, so that a run started from another file goes on where it was itself.

        Raises:
            FileNotFoundError: resume_from_checkpoint doesn't exist, or none was found where one has to be.
            ValueError: the folder holds a run and resume_if_exists is false: nothing is overwritten.
        """
        if exp.resume_if_exists:
            own = self.newest_checkpoint()
            if own:
                return own
        elif self.metrics.exists() or self.newest_checkpoint():
            raise ValueError(
                f"{self.path} already holds a run, and exp_manager.resume_if_exists is false:"
                " give another name=..., or move the folder away"
            )
        if exp.resume_from_checkpoint:
            given = Path(exp.resume_from_checkpoint)
            if not whole_path(given).exists():
                raise FileNotFoundError(f"exp_manager.resume_from_checkpoint: no checkpoint at {given}")
            return given
        if exp.resume_if_exists and not exp.resume_ignore_no_checkpoint:
            raise FileNotFoundError(
                f"no checkpoint in {self.checkpoints} to resume from:"
                " set exp_manager.resume_ignore_no_checkpoint=true to start anew"
            )
        return None

    def newest_checkpoint(self) -> Path | None:
        """Return last.ckpt, or the newest whole one where last.ckpt is damaged or missing; None if there is none."""
        from s2s_parallel.checkpoint import is_complete  # imports Lightning: a typo needn't wait ten seconds for it

        recover(self.last_checkpoint)
        if is_complete(self.last_checkpoint):
            return self.last_checkpoint
        files = sorted(self.checkpoints.glob("*.ckpt"), key=lambda file: file.stat().st_mtime)
        whole = [file for file in files if is_complete(file)]
        for file in files:
            if file not in whole:
                logger.warning("%s is damaged and left alone", file)
        return whole[-1] if whole else None
