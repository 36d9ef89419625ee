"""Any model of transformers' speech recognition pipeline, by folder or name: Whisper, wav2vec2 and other CTC models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2s_eval.asr import AsrConfig, Samples, looks_like_path, require_module
from s2s_eval.lifecycle import TorchModel, one_line
from s2s_eval.resampling import in_pieces


def check(config: AsrConfig) -> None:
    """Raise ValueError if transformers or the folder's model is missing. A hub name is only tried when loading."""
    require_module("transformers", config, "pip install 's2s-eval[transformers]'")
    folder = Path(config.model).expanduser()
    if looks_like_path(config.model) and not (folder / "config.json").is_file():
        raise ValueError(
            f"scoring_asr: no transformers model in {folder} (it has no config.json): give a folder written by "
            "save_pretrained, with its tokenizer and feature extractor, or scoring_asr=none"
        )


class TransformersAsr(TorchModel):
    """See :class:`s2s_eval.asr.AsrBackend`. Greedy decoding; float32 on CPU, float16 on CUDA."""

    def __init__(self, config: AsrConfig) -> None:
        from transformers import pipeline

        name = str(Path(config.model).expanduser()) if looks_like_path(config.model) else config.model
        try:
            self._pipeline: Any = pipeline(
                "automatic-speech-recognition",
                model=name,
                device="cpu",  # to_device moves it
                dtype=torch.float32 if config.device == "cpu" else torch.float16,
            )
        except Exception as error:  # the hub, safetensors, tokenizers and missing files each raise their own
            raise ValueError(
                f"scoring_asr: transformers could not load {config.model!r}: {one_line(error)}. Check the name or "
                "folder, or give one that is on this machine"
            ) from error
        extractor = self._pipeline.feature_extractor
        if extractor is None or self._pipeline.tokenizer is None:
            raise ValueError(
                f"scoring_asr: transformers:{config.model} has no feature extractor or no tokenizer: save both beside "
                "the model"
            )
        super().__init__(self._pipeline.model, config.device)
        # without a mask the padding of the shorter ones is heard too, and what is in a batch changes what they say
        hears_padding = not (self._pipeline.model.can_generate() or extractor.return_attention_mask)
        self._batch_size = 1 if hears_padding else config.batch_size
        self._sample_rate_hz = int(extractor.sampling_rate)
        self._generation = _generation(self._pipeline, config)

    def transcribe(self, audios: Sequence[Samples | Tensor], sample_rate: int) -> list[str]:
        """Return one transcript for each utterance. More than 30 s are transcribed piece by piece."""
        return in_pieces(audios, sample_rate, self._sample_rate_hz, self._transcribe_pieces)

    def to_device(self) -> None:
        """Move to the device; the pipeline sends its inputs there too."""
        super().to_device()
        self._pipeline.device = self._device

    def close(self) -> None:
        """Free the model."""
        self._pipeline = None
        super().close()

    def _transcribe_pieces(self, pieces: list[Samples]) -> list[str]:
        if not pieces:
            return []
        by_length = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # little padding in a batch
        with torch.inference_mode():
            results = self._pipeline(
                [pieces[i] for i in by_length], batch_size=self._batch_size, generate_kwargs=self._generation
            )
        texts = [""] * len(pieces)
        for i, result in zip(by_length, results, strict=True):
            texts[i] = str(result["text"]).strip()
        return texts


def _generation(pipe: Any, config: AsrConfig) -> dict[str, Any]:
    """Return what ``generate`` is told. Raises ValueError for a language that a multilingual model doesn't know."""
    if not pipe.model.can_generate():
        return {}
    settings = pipe.model.generation_config
    if not getattr(settings, "is_multilingual", False):
        return {"num_beams": 1}
    known = sorted(token.strip("<|>") for token in getattr(settings, "lang_to_id", {}))
    if config.language not in known:
        raise ValueError(
            f"language={config.language!r} isn't a language of transformers:{config.model}: known are "
            f"{', '.join(known)}"
        )
    return {"num_beams": 1, "language": config.language, "task": "transcribe"}
