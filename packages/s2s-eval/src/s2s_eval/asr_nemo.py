"""A NeMo ``ASRModel``, by pretrained name or ``.nemo`` file."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from s2s_eval.asr import AsrConfig, Samples, looks_like_path, require_module
from s2s_eval.lifecycle import TorchModel
from s2s_eval.nemo_models import load_nemo, sample_rate_of
from s2s_eval.resampling import at_rate


def check(config: AsrConfig) -> None:
    """Raise ValueError if NeMo or the ``.nemo`` file is missing. A pretrained name is only tried when loading."""
    require_module("nemo", config, "pip install 'nemo_toolkit[asr]'")
    if (config.model.endswith(".nemo") or looks_like_path(config.model)) and not _path(config).is_file():
        raise ValueError(
            f"scoring_asr: there is no NeMo file {_path(config)}: give a .nemo file, a pretrained name "
            "such as stt_en_fastconformer_transducer_large, or scoring_asr=none"
        )


class NemoAsr(TorchModel):
    """See :class:`s2s_eval.asr.AsrBackend`."""

    def __init__(self, config: AsrConfig) -> None:
        from nemo.collections.asr.models import ASRModel

        model = load_nemo(ASRModel, config.model, "scoring_asr")
        # Each capture of a transducer's CUDA graphs costs 99 MiB that stay (cuBLAS' workspaces of its stream).
        model.disable_cuda_graphs()
        super().__init__(model, config.device)
        self._batch_size = config.batch_size
        self._sample_rate_hz = sample_rate_of(model)

    def transcribe(self, audios: Sequence[Samples | Tensor], sample_rate: int) -> list[str]:
        """Return one transcript for each utterance."""
        if not audios:
            return []
        samples = [at_rate(audio, sample_rate, self._sample_rate_hz) for audio in audios]
        with torch.inference_mode():
            results = self._module.transcribe(samples, batch_size=self._batch_size, verbose=False)
        best = results[0] if isinstance(results, tuple) else results  # some transducers return (best, n-best)
        return [str(getattr(result, "text", result)).strip() for result in best]


def _path(config: AsrConfig) -> Path:
    return Path(config.model).expanduser()
