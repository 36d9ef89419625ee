"""The models that a config asks for, which share one life: built unloaded, used, released, closed."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from s2s_eval.asr import asr_config
from s2s_eval.config import ScoringConfig
from s2s_eval.quality import QualityScorer
from s2s_eval.speaker_similarity import SpeakerSimilarity
from s2s_eval.transcripts import Transcriber


class Scorers:
    """Recogniser, quality and voice model of a :class:`~s2s_eval.config.ScoringConfig`; each None where it is off.

    In a ``with`` statement they are closed at its end.
    """

    def __init__(self, config: ScoringConfig) -> None:
        """Load nothing yet. Raises ValueError in one line where a library, a model or a device is missing."""
        asr = replace(
            asr_config(config.scoring_asr),
            device=config.asr_device,
            batch_size=config.asr_batch_size,
            num_threads=config.asr_num_threads,
            language=config.language,
            keep=config.keep_models,
        )
        quality, speakers = config.quality.strip(), config.speaker_similarity.strip()
        rest: dict[str, Any] = {
            "silence_dbfs": config.silence_dbfs,
            "device": config.asr_device,
            "keep": config.keep_models,
        }
        self.transcriber = None if asr.is_none else Transcriber(asr, config.silence_dbfs)
        self.quality = None if quality == "none" else QualityScorer(quality, **rest)
        self.speakers = None if speakers == "none" else SpeakerSimilarity(speakers, **rest)
        self._all = [scorer for scorer in (self.transcriber, self.quality, self.speakers) if scorer is not None]

    def use_device(self, device: str) -> None:
        """Run on this device ("cpu", "cuda:1") if the config leaves it to us."""
        for scorer in self._all:
            scorer.use_device(device)

    def release(self) -> None:
        """Leave the GPU, all of them, even where one fails."""
        with ExitStack() as stack:
            for scorer in self._all:
                stack.callback(scorer.release)

    def close(self) -> None:
        """Free everything, loaded or not."""
        with ExitStack() as stack:
            for scorer in self._all:
                stack.callback(scorer.close)

    def __enter__(self) -> "Scorers":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
