"""The Lightning callback that scores validation: the recogniser lives from its start to its end, and no longer."""

import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from s2s_eval.batch_scoring import score_batch
from s2s_eval.config import ScoringConfig, check_config
from s2s_eval.dialogue_scores import DialogueScore, one_per_dialogue, validation_metrics
from s2s_eval.gather import gather_lists
from s2s_eval.memory import forget_frames, free_memory
from s2s_eval.metrics import bleu_signature
from s2s_eval.report import write_report
from s2s_eval.run_loggers import log_dialogues
from s2s_eval.samples import SampleKeeper, step_dir, write_audio, write_scores
from s2s_eval.scorers import Scorers

log = logging.getLogger(__name__)


class ValidationScoring(pl.Callback):
    """Scores what ``validation_step`` returns, logs the metrics, writes samples and the report.

    ``validation_step`` returns, for a batch that is a dict of named data sets, a dict of the same names; see
    :func:`s2s_eval.batch_scoring.score_batch` for the entries. A data set that is None or absent is passed over.
    Metrics are in per cent, equal on all ranks, and in ``trainer.callback_metrics`` before checkpoints are saved, so
    ``monitor: val_asr_bleu`` works. See :func:`s2s_eval.dialogue_scores.validation_metrics` for their names.
    """

    def __init__(self, config: ScoringConfig, run_dir: str | Path | None = None) -> None:
        """Without ``run_dir`` neither samples nor a report are written. Raises ValueError on a bad config."""
        self.config = config
        self.run_dir = None if run_dir is None else Path(run_dir)
        check_config(config)
        self.scorers = Scorers(config)  # checked now, not at the first validation, hours into the run
        self._dialogues: list[DialogueScore] = []  # of this rank
        self._scored: list[DialogueScore] = []  # of all ranks, once the validation is scored
        self._keeper = SampleKeeper(config.max_samples_per_dataset)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with nothing scored. The models themselves are loaded by the first audible turn."""
        self._forget()
        self.scorers.use_device(str(pl_module.device))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the batch's dialogues."""
        if self._is_off(trainer) or _is_copy(trainer) or not isinstance(outputs, Mapping):
            return
        for dataset, output in outputs.items():
            data = batch.get(dataset)
            if output is None or data is None or not data["cut_ids"]:
                continue
            models = (self.scorers.transcriber, self.scorers.quality, self.scorers.speakers)
            for score, audio in score_batch(dataset, data, output, self.config, *models):
                self._dialogues.append(score)
                self._keeper.add(dataset, score.cut_id, audio)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the models off the GPU, compute the metrics over all ranks' dialogues, log them, write the samples."""
        self.scorers.release()
        if self._is_off(trainer):
            return
        dialogues = one_per_dialogue(gather_lists(self._dialogues))
        metrics = validation_metrics(
            dialogues, has_asr=self.scorers.transcriber is not None, language=self.config.language
        )
        for name, value in metrics.items():
            # equal on all ranks already: nothing to synchronise, so Lightning's advice to is not for us
            warnings.filterwarnings("ignore", rf".*self\.log\('{re.escape(name)}', \.\.\., sync_dist=True")
            pl_module.log(name, value, on_step=False, on_epoch=True, batch_size=1)
        if self.run_dir is not None and dialogues:
            self._write_samples(trainer, self.run_dir, dialogues, metrics)
        self._forget()
        self._scored = dialogues

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the report and show samples to the loggers, once these have this validation's metrics."""
        free_memory()  # what decoding took of the GPU and torch keeps for later
        if self.run_dir is not None and not self._is_off(trainer):
            trainer.strategy.barrier("s2s_eval_samples")  # by then every rank has written its wavs
            if trainer.is_global_zero:
                self._show(trainer, self.run_dir)
        self._forget()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Free everything, whatever happened."""
        if trainer.validating or trainer.sanity_checking:
            forget_frames(exception)  # they hold a batch, its caches and activations
            if trainer._results is not None:
                trainer._results.batch = None  # where Lightning (2.5.6) keeps a batch that it couldn't end
        self.scorers.close()
        self._forget()
        free_memory()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Free everything."""
        self.scorers.close()
        self._forget()

    def _show(self, trainer: pl.Trainer, run_dir: Path) -> None:
        step, config = trainer.global_step, self.config
        folder = step_dir(run_dir, step)
        if config.write_report:
            try:
                write_report(run_dir, step if folder.is_dir() else None)
            except (OSError, ValueError) as error:
                log.warning("report.html of %s was not written: %s. Training goes on.", run_dir, error)
        log_dialogues(trainer.loggers, step, self._scored, folder, config.max_samples_per_dataset, config.language)

    def _is_off(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.sanity_checking) and not self.config.score_sanity_check

    def _forget(self) -> None:
        self._dialogues, self._scored = [], []
        self._keeper = SampleKeeper(self.config.max_samples_per_dataset)

    def _write_samples(
        self, trainer: pl.Trainer, run_dir: Path, dialogues: list[DialogueScore], metrics: dict[str, float]
    ) -> None:
        """Write wavs (each rank its own) and texts (rank 0). A full disk costs the samples, not the run."""
        folder = step_dir(run_dir, trainer.global_step)
        limit = self.config.max_samples_per_dataset
        about = {
            "asr": self.config.scoring_asr,
            "bleu": bleu_signature(self.config.language),
            "language": self.config.language,
            "quality": self.config.quality,
            "speaker_similarity": self.config.speaker_similarity,
        }
        try:
            write_audio(folder, dialogues, self._keeper, limit)
            if trainer.is_global_zero:
                write_scores(folder, trainer.global_step, dialogues, metrics, limit, about)
        except (OSError, RuntimeError, AssertionError) as error:  # soundfile raises the latter two on a full disk
            log.warning("samples in %s were not written: %s. Training goes on.", folder, error)


def _is_copy(trainer: pl.Trainer) -> bool:
    """Whether another rank scores the same dialogues: of tensor parallel peers, which are neighbours, the first."""
    place = trainer.distributed_sampler_kwargs
    if place is None:
        return False
    return trainer.global_rank % (trainer.world_size // int(place["num_replicas"])) != 0
