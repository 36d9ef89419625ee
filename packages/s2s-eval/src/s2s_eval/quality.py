"""How natural the agent sounds, from a model that predicts listeners' opinion (1 bad to 5 excellent)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from s2s_eval.asr import Samples
from s2s_eval.lifecycle import HeldModel, LazyModel
from s2s_eval.resampling import at_rate
from s2s_eval.speech_segments import only_speech, speech_segments

SAMPLE_RATE_HZ = 16000
TORCHSCRIPT = "torchscript:"


class QualityModel(HeldModel, Protocol):
    """A loaded predictor."""

    def score(self, audio_S: Samples) -> float:
        """Return the opinion of one audio [S] at 16 kHz, never empty."""
        ...


class QualityScorer(LazyModel[QualityModel]):
    """Scores audio by one of:

    ============================ ==================================================================================
    ``none``                     no quality scores
    ``dnsmos``                   DNSMOS P.835 overall (Reddy et al., ICASSP 2022), from the package speechmos
    ``torchscript:/model.pt``    any TorchScript module taking float32 [B, S] at 16 kHz and giving [B]: UTMOS and its
                                 like have no package with weights, but export to this
    ============================ ==================================================================================

    See :class:`s2s_eval.lifecycle.LazyModel` for :meth:`use_device`, :meth:`release` and :meth:`close`.
    """

    def __init__(self, quality: str, *, silence_dbfs: float = -50.0, device: str = "auto", keep: str = "auto") -> None:
        """Load nothing yet. Raises ValueError for an unknown ``quality``, and where its library or file is missing."""
        super().__init__(f"quality={quality}", device, keep)
        self.quality = quality.strip()
        self._silence_dbfs = silence_dbfs
        _check(self.quality)

    @property
    def is_none(self) -> bool:
        """Whether quality scoring is off."""
        return self.quality == "none"

    def score(self, audios: Sequence[Samples], sample_rate: int) -> list[float | None]:
        """Return the opinion of what is audible in each 1-D audio, None where nothing is. ``sample_rate`` is in Hz."""
        scores: list[float | None] = [None] * len(audios)
        if self.is_none:
            return scores
        for i, audio in enumerate(audios):
            samples = at_rate(audio, sample_rate, SAMPLE_RATE_HZ)
            spoken = only_speech(samples, SAMPLE_RATE_HZ, speech_segments(samples, SAMPLE_RATE_HZ, self._silence_dbfs))
            if len(spoken):
                with self._running() as model:
                    scores[i] = model.score(spoken)
        return scores

    def _load(self, device: str) -> QualityModel:
        _check(self.quality)
        if self.quality == "dnsmos":
            from s2s_eval.quality_dnsmos import Dnsmos

            return Dnsmos(device)
        from s2s_eval.quality_torchscript import TorchScriptQuality

        return TorchScriptQuality(_torchscript_path(self.quality), device)


def _check(quality: str) -> None:
    if quality == "none":
        return
    if quality == "dnsmos":
        missing = [name for name in ("speechmos", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(
                f"quality=dnsmos needs {' and '.join(missing)}, not installed in this environment: run "
                "`pip install 's2s-eval[quality]'`, or set quality=none"
            )
        return
    if not quality.startswith(TORCHSCRIPT):
        raise ValueError(f"unknown quality={quality!r}: known are none, dnsmos, torchscript:/path.pt")
    if not _torchscript_path(quality).is_file():
        raise ValueError(
            f"quality={quality}: there is no file {_torchscript_path(quality)}: give a file written by torch.jit.save, "
            "or quality=none"
        )


def _torchscript_path(quality: str) -> Path:
    return Path(quality.removeprefix(TORCHSCRIPT)).expanduser()
