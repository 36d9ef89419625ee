"""A quality predictor as a TorchScript file."""

from pathlib import Path

import torch

from s2s_eval.asr import Samples
from s2s_eval.lifecycle import TorchModel, one_line
from s2s_eval.resampling import split_long

SAMPLE_RATE_HZ = 16000


class TorchScriptQuality(TorchModel):
    """See :class:`s2s_eval.quality.QualityModel`."""

    def __init__(self, path: Path, device: str) -> None:
        self._path = path
        try:
            module = torch.jit.load(str(path), map_location="cpu")
        except Exception as error:  # of a file that is something else: RuntimeError, ValueError, a zip's own
            raise ValueError(
                f"quality: torch could not load {path}: {one_line(error)}. Give a file written by torch.jit.save"
            ) from error
        super().__init__(module, device)

    def score(self, audio_S: Samples) -> float:
        """Return the mean over the audio's pieces of at most 30 s, weighted by their lengths.

        Pieces go in one by one: in a batch the padding of the shorter ones would be judged too.
        """
        total = 0.0
        for piece in split_long(audio_S, SAMPLE_RATE_HZ):
            with torch.inference_mode():
                score = self._module(torch.from_numpy(piece)[None].to(self._device))
            if not isinstance(score, torch.Tensor) or score.shape != (1,):
                got = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
                raise ValueError(
                    f"quality: the module of {self._path} gave {got} for one audio: it must give [B], (1,)"
                )
            total += float(score) * len(piece)
        return total / len(audio_S)
