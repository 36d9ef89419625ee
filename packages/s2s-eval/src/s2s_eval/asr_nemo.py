"""A NeMo ``ASRModel``, by pretrained name or ``.nemo`` file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2s_eval.asr import AsrConfig, Samples, looks_like_path, require_module, to_16k
from s2s_eval.memory import free_memory


def check(config: AsrConfig) -> None:
    """Raise ValueError if NeMo or the ``.nemo`` file is missing. A pretrained name is only tried when loading."""
    require_module("nemo", config, "pip install 'nemo_toolkit[asr]'")
    if (config.model.endswith(".nemo") or looks_like_path(config.model)) and not _path(config).is_file():
        raise ValueError(
            f"scoring_asr: there is no NeMo file {_path(config)}: give a .nemo file, a pretrained name "
            "such as stt_en_fastconformer_transducer_large, or scoring_asr=none"
        )


class NemoAsr:
    """See :class:`s2s_eval.asr.AsrBackend`."""

    def __init__(self, config: AsrConfig) -> None:
        from nemo.collections.asr.models import ASRModel

        auto = "cuda" if torch.cuda.is_available() else "cpu"
        device = torch.device(auto if config.device == "auto" else config.device)
        self._batch_size = config.batch_size
        try:
            if config.model.endswith(".nemo"):
                model = ASRModel.restore_from(str(_path(config)), map_location=device)
            else:
                model = ASRModel.from_pretrained(config.model, map_location=device)
        except Exception as error:  # NeMo raises whatever the hub, tar or Hydra raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"scoring_asr: NeMo could not load {config.model!r}: {reason}. Check the name or file, or give one "
                "that is on this machine"
            ) from error
        self._model: Any = model.eval().to(device)

    def transcribe(self, audios: Sequence[Samples | Tensor], sample_rate: int) -> list[str]:
        """Return one transcript for each utterance."""
        if not audios:
            return []
        samples = [to_16k(audio, sample_rate) for audio in audios]
        with torch.inference_mode():
            results = self._model.transcribe(samples, batch_size=self._batch_size, verbose=False)
        best = results[0] if isinstance(results, tuple) else results  # some transducers return (best, n-best)
        return [str(getattr(result, "text", result)).strip() for result in best]

    def close(self) -> None:
        """Free the model."""
        self._model = None
        free_memory()


def _path(config: AsrConfig) -> Path:
    return Path(config.model).expanduser()
