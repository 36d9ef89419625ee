"""The codecs of transformers: Mimi, EnCodec and DAC.

Shapes: `B` batch, `S` samples, `T` frames, `K` codebooks.
"""

import hashlib
from abc import abstractmethod
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s2s_model.codecs.base import AudioCodec
from s2s_model.names import first_line

REMEMBERED = "s2s_num_codebooks"  # the key of config.json that says how many codebooks a saved codec uses


class HuggingFaceCodec(AudioCodec):
    """A codec of transformers; `num_codebooks` takes the first of its codebooks, None all.

    Raises:
        ValueError: it doesn't work with so many codebooks, or its codes alone don't describe the audio; the message
            begins with `key`.
    """

    def __init__(self, model: Any, *, key: str = "codec", num_codebooks: int | None = None) -> None:
        config = model.config
        if reason := self._reason_against(config):
            raise ValueError(f"{key}: this {config.model_type} codec {reason}")
        choices = self._choices(model)
        K = max(choices) if num_codebooks is None else num_codebooks
        if K not in choices:
            raise ValueError(
                f"{key}: num_codebooks is {K}, but this {config.model_type} codec works with "
                f"{', '.join(str(choice) for choice in choices)}"
            )
        super().__init__(
            model,
            sample_rate=int(config.sampling_rate),
            samples_per_frame=samples_per_frame(config),
            num_codebooks=K,
            codebook_size=int(config.codebook_size),
            fingerprint=_fingerprint(model.float(), config.model_type, K),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write transformers' own files; `config.json` remembers `num_codebooks`."""
        setattr(self._model.config, REMEMBERED, self.num_codebooks)
        self._model.save_pretrained(folder)

    def _reason_against(self, config: Any) -> str | None:
        channels = getattr(config, "audio_channels", 1)
        return None if channels == 1 else f"has {channels} audio channels, but the agent has one: use a mono codec"

    @abstractmethod
    def _choices(self, model: Any) -> list[int]:
        """The K it works with."""


class MimiCodec(HuggingFaceCodec):
    """Mimi (Défossez et al., Moshi, 2024, arXiv 2410.00037); Moshi uses 8 of its 32 codebooks."""

    def _choices(self, model: Any) -> list[int]:
        return list(range(model.config.num_semantic_quantizers, model.config.num_quantizers + 1))

    def _encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        codes_BKT: Tensor = self._model.encode(
            audio_BS[:, None], num_quantizers=self.num_codebooks, use_streaming=False
        ).audio_codes
        return codes_BKT

    def _decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        audio_BS: Tensor = self._model.decode(codes_BKT).audio_values[:, 0]
        return audio_BS

    def _move_to(self, device: Any) -> None:
        if self.device != device:
            # A codebook keeps its entries, a quotient of two buffers, where `to` doesn't find them.
            for module in self._model.modules():
                if hasattr(module, "_embed"):
                    module._embed = None
        super()._move_to(device)


class EncodecCodec(HuggingFaceCodec):
    """EnCodec (Défossez et al., 2022, arXiv 2210.13438); K follows from its bandwidth.

    It starts by mirroring its first 6 frames; from 7 frames on it is causal.
    """

    def _reason_against(self, config: Any) -> str | None:
        if config.normalize or config.chunk_length_s is not None:
            return (
                "normalizes or chunks its audio (normalize, chunk_length_s): a loudness for each chunk comes with its "
                "codes, for which the model has no place: use one without, such as the 24 kHz EnCodec"
            )
        if config.norm_type == "time_group_norm":
            return (
                "normalizes over all frames (norm_type time_group_norm), so that padding changes its codes: use another"
            )
        return super()._reason_against(config)

    def _choices(self, model: Any) -> list[int]:
        return sorted(_bandwidths(model))

    def _encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        bandwidth = _bandwidths(self._model)[self.num_codebooks]
        codes_BKT: Tensor = self._model.encode(audio_BS[:, None], bandwidth=bandwidth).audio_codes[0]
        return codes_BKT

    def _decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        audio_BS: Tensor = self._model.decode(codes_BKT[None], audio_scales=[None]).audio_values[:, 0]
        return audio_BS


class DacCodec(HuggingFaceCodec):
    """DAC (Kumar et al., 2023, arXiv 2306.06546).

    It isn't causal: the last frames of an example see what follows, and silence that fills a batch isn't quite an end.
    """

    def _choices(self, model: Any) -> list[int]:
        return list(range(1, model.config.n_codebooks + 1))

    def _encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        codes_BKT: Tensor = self._model.encode(audio_BS[:, None], n_quantizers=self.num_codebooks).audio_codes
        return codes_BKT

    def _decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        audio_BS: Tensor = self._model.decode(audio_codes=codes_BKT).audio_values
        return audio_BS


CODECS: dict[str, type[HuggingFaceCodec]] = {"dac": DacCodec, "encodec": EncodecCodec, "mimi": MimiCodec}


def load_huggingface_codec(
    name_or_path: str, *, key: str, num_codebooks: int | None, precision: str | None
) -> HuggingFaceCodec:
    """Load a codec whose `model_type` is one of `CODECS`.

    Raises:
        ValueError: config or weights are missing or incomplete, or the codec isn't one to use, or not in `precision`.
    """
    import torch
    from transformers import AutoModel

    if precision == "float16":
        raise ValueError(f"{key}: precision is float16, but {name_or_path} runs in float32 alone: leave it out")
    try:
        model, info = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # the hub, strict configs, safetensors and torch each raise their own
        raise ValueError(f"{key}: {name_or_path} can't be loaded as a codec: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):  # transformers leaves them at random
        raise ValueError(f"{key}: {name_or_path} lacks {len(missing)} tensors of the codec, {missing[0]} first")
    if num_codebooks is None:
        num_codebooks = getattr(model.config, REMEMBERED, None)
    return CODECS[model.config.model_type](model, key=key, num_codebooks=num_codebooks)


def samples_per_frame(config: Any) -> int:
    """Samples of a frame: the product of the encoder's strides, as the config of a codec has them."""
    if config.model_type == "dac":
        return prod(int(ratio) for ratio in config.downsampling_ratios)
    hop = prod(int(ratio) for ratio in config.upsampling_ratios)
    return hop * int(config.encodec_frame_rate / config.frame_rate) if config.model_type == "mimi" else hop


def _bandwidths(model: Any) -> dict[int, float]:
    """EnCodec's bandwidths (kbit/s) by the K they give."""
    quantizer = model.quantizer
    by_k: dict[int, float] = {}
    for bandwidth in model.config.target_bandwidths:
        K = min(quantizer.get_num_quantizers_for_bandwidth(bandwidth), len(quantizer.layers))
        by_k.setdefault(K, bandwidth)
    return by_k


def _fingerprint(model: nn.Module, model_type: str, num_codebooks: int) -> str:
    """`<type>-<hash of weights and K>`. Names are left out: releases of transformers differ in them."""
    tensors = sorted(
        hashlib.sha256(str(list(value.shape)).encode() + value.cpu().contiguous().numpy().tobytes()).digest()
        for value in model.state_dict().values()
    )
    digest = hashlib.sha256(b"".join(tensors) + str(num_codebooks).encode())
    return f"{model_type}-{digest.hexdigest()[:16]}"
