"""`profile`: look into some steps of a config, without a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch import seed_everything

from s2s_train.callbacks import StepSeed
from s2s_train.config import AppConfig
from s2s_train.data_module import DuplexDataModule
from s2s_train.fit import ModelBuilder, say
from s2s_train.profile_config import ProfileConfig
from s2s_train.profile_steps import StepProfiler
from s2s_train.trainer import build_trainer


def profile_steps(cfg: AppConfig, asked: ProfileConfig, out: Path, build_model: ModelBuilder) -> StepProfiler:
    """Train up to the last of the asked steps on the config's data, from its own weights; save nothing of the run.

    Raises:
        ValueError, OSError: what the user can mend; or training ends before these steps.
    """
    profiler = StepProfiler(asked, out)
    seed_everything(cfg.seed, workers=True, verbose=False)
    trainer = build_trainer(
        replace(
            cfg.trainer,
            max_steps=profiler.steps.stop,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            profiler=None,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
        loggers=[],
        callbacks=[StepSeed(cfg.seed), profiler],
        root_dir=str(out),
    )
    model = build_model(cfg)
    say(f"profiling steps {profiler.steps.start} to {profiler.steps.stop - 1}; files go to {out}")
    trainer.fit(model, DuplexDataModule(cfg.data))
    if not profiler.is_done:
        raise ValueError(
            f"training ended at step {trainer.global_step}, before --steps {asked.steps}: give earlier ones, or raise"
            " what ends it in trainer"
        )
    return profiler
