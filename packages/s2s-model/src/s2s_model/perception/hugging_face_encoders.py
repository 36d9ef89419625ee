"""The Hugging Face encoders that are known, and what differs between them.

Shapes: `B` batch, `S` samples, `P` pieces of a recording, `T` the encoder's vectors (20 ms), `F` features,
`C` channels.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s2s_model.codecs.base import float32_only

Augment = Callable[[Tensor, Tensor], Tensor]  # features [B, F, T] and their lengths [B] to features


class Family(ABC):
    """How the encoders of one `model_type` are built and called."""

    config_class: str
    extractor_class: str
    defaults: ClassVar[dict[str, Any]]  # unless set; no layer is dropped, which DDP and FSDP can't follow

    @abstractmethod
    def build(self, config: Any) -> Any:
        """The encoder at random weights."""

    @abstractmethod
    def load(self, source: str, config: Any) -> tuple[Any, list[str]]:
        """The pretrained encoder, and the names of weights that it lacks."""

    @abstractmethod
    def extractor_sizes(self, config: Any) -> dict[str, int]:
        """Arguments of the feature extractor that the encoder decides."""

    @abstractmethod
    def check_features(self, config: Any, extractor: Any) -> tuple[int, int]:
        """How many features the extractor gives and the encoder takes."""

    @abstractmethod
    def frame_s(self, encoder: Any, extractor: Any) -> float:
        """Seconds from one vector to the next."""

    @abstractmethod
    def width(self, config: Any) -> int:
        """Channels of a vector."""

    @abstractmethod
    def blocks(self, encoder: Any) -> list[Any]:
        """The repeated layers."""

    @abstractmethod
    def encode(self, encoder: Any, extractor: Any, audio: list[Tensor], augment: Augment) -> tuple[Tensor, Tensor]:
        """Encode B recordings [S] to vectors [B, T, C]; returns them with their numbers [B]."""


class Whisper(Family):
    """The encoder of Whisper (Radford et al., arXiv 2212.04356), which takes exactly 30 s.

    Longer audio is encoded 30 s by 30 s; what is shorter is padded with silence, and its vectors are cut.
    """

    config_class = "WhisperConfig"
    extractor_class = "WhisperFeatureExtractor"
    defaults: ClassVar[dict[str, Any]] = {"encoder_layerdrop": 0.0}

    def build(self, config: Any) -> Any:
        """The encoder at random weights."""
        from transformers.models.whisper.modeling_whisper import WhisperEncoder

        return WhisperEncoder(config)

    def load(self, source: str, config: Any) -> tuple[Any, list[str]]:
        """The encoder of a whole Whisper."""
        from transformers import WhisperModel

        model, info = _load(WhisperModel, source, config)
        return model.encoder, [name for name in info["missing_keys"] if name.startswith("encoder.")]

    def extractor_sizes(self, config: Any) -> dict[str, int]:
        """Its mel bins."""
        return {"feature_size": config.num_mel_bins}

    def check_features(self, config: Any, extractor: Any) -> tuple[int, int]:
        """Mel bins."""
        return extractor.feature_size, config.num_mel_bins

    def frame_s(self, encoder: Any, extractor: Any) -> float:
        """The hop of the features times the stride of the convolutions."""
        return float(self._samples(encoder, extractor) / extractor.sampling_rate)

    def width(self, config: Any) -> int:
        """Its d_model."""
        return int(config.d_model)

    def blocks(self, encoder: Any) -> list[Any]:
        """Its layers."""
        return list(encoder.layers)

    def encode(self, encoder: Any, extractor: Any, audio: list[Tensor], augment: Augment) -> tuple[Tensor, Tensor]:
        """Encode B recordings [S] piece by piece to [B, T, C]; returns them with their numbers [B]."""
        hop = self._samples(encoder, extractor)
        size = encoder.config.max_source_positions * hop
        pieces = [piece for recording in audio for piece in recording.split(size)]
        device = audio[0].device
        with float32_only(device.type):  # its window is made in the default dtype
            features_PFT = extractor(
                [piece.detach().cpu().numpy() for piece in pieces],
                sampling_rate=extractor.sampling_rate,
                max_length=size,
                return_tensors="pt",
                device=str(device),
            )["input_features"].to(device)
        frames_P = torch.tensor([math.ceil(len(piece) / extractor.hop_length) for piece in pieces], device=device)
        features_PFT = augment(features_PFT, frames_P)
        vectors_PTC = encoder(features_PFT.to(encoder.conv1.weight.dtype)).last_hidden_state
        recordings = vectors_PTC.split([len(recording.split(size)) for recording in audio])
        lens = [math.ceil(len(recording) / hop) for recording in audio]
        vectors = [vectors.flatten(0, 1)[:n] for vectors, n in zip(recordings, lens, strict=True)]
        return pad_sequence(vectors, batch_first=True), torch.tensor(lens, device=device)

    def _samples(self, encoder: Any, extractor: Any) -> int:
        """Samples from one vector to the next."""
        return int(extractor.hop_length * encoder.conv1.stride[0] * encoder.conv2.stride[0])


class Wav2Vec2Bert(Family):
    """w2v-BERT 2.0 (arXiv 2312.05187), whose features are normalised over the recording."""

    config_class = "Wav2Vec2BertConfig"
    extractor_class = "SeamlessM4TFeatureExtractor"
    # model.perception.spec_augment says what is masked; the family masks by default.
    defaults: ClassVar[dict[str, Any]] = {
        "layerdrop": 0.0,
        "apply_spec_augment": False,
        "mask_time_prob": 0.0,  # else there is a mask vector that gets no gradient, which DDP refuses
        "mask_feature_prob": 0.0,
    }
    hop_length = 160  # fixed in its feature extractor
    min_samples = 720  # the features of one vector, with the extractor's window of 400 samples

    def build(self, config: Any) -> Any:
        """The encoder at random weights."""
        from transformers import Wav2Vec2BertModel

        return Wav2Vec2BertModel(config)

    def load(self, source: str, config: Any) -> tuple[Any, list[str]]:
        """The encoder, also of a model with a head."""
        from transformers import Wav2Vec2BertModel

        model, info = _load(Wav2Vec2BertModel, source, config)
        return model, list(info["missing_keys"])

    def extractor_sizes(self, config: Any) -> dict[str, int]:
        """Mel bins: two frames of them are stacked."""
        bins = config.feature_projection_input_dim // 2
        return {"feature_size": bins, "num_mel_bins": bins, "stride": 2}

    def check_features(self, config: Any, extractor: Any) -> tuple[int, int]:
        """Stacked mel bins."""
        return extractor.num_mel_bins * extractor.stride, config.feature_projection_input_dim

    def frame_s(self, encoder: Any, extractor: Any) -> float:
        """The hop of the features, how many are stacked, and the strides of the model's own adapter if it has one."""
        config = encoder.config
        stride = config.adapter_stride**config.num_adapter_layers if config.add_adapter else 1
        return float(self.hop_length * extractor.stride * stride / extractor.sampling_rate)

    def width(self, config: Any) -> int:
        """Its hidden size, or its adapter's."""
        return int(config.output_hidden_size if config.add_adapter else config.hidden_size)

    def blocks(self, encoder: Any) -> list[Any]:
        """Its layers, and those of its adapter."""
        return [*encoder.encoder.layers, *(encoder.adapter.layers if encoder.adapter is not None else [])]

    def encode(self, encoder: Any, extractor: Any, audio: list[Tensor], augment: Augment) -> tuple[Tensor, Tensor]:
        """Encode B recordings [S] to [B, T, C]; returns them with their numbers [B]."""
        device = audio[0].device
        padded = [torch.nn.functional.pad(a, (0, max(0, self.min_samples - len(a)))) for a in audio]
        features = extractor(
            [recording.detach().cpu().numpy() for recording in padded],
            sampling_rate=extractor.sampling_rate,
            return_tensors="pt",
        ).to(device)
        mask_BT = features["attention_mask"]
        frames_B = mask_BT.sum(dim=1)
        features_BFT = augment(features["input_features"].transpose(1, 2), frames_B)
        dtype = encoder.feature_projection.projection.weight.dtype
        vectors_BTC = encoder(features_BFT.transpose(1, 2).to(dtype), attention_mask=mask_BT).last_hidden_state
        return vectors_BTC, encoder._get_feat_extract_output_lengths(frames_B)


def _load(model_class: Any, source: str, config: Any) -> tuple[Any, dict[str, Any]]:
    model, info = model_class.from_pretrained(
        source, config=config, dtype=torch.get_default_dtype(), output_loading_info=True
    )
    return model, info


FAMILIES: dict[str, Family] = {"whisper": Whisper(), "wav2vec2-bert": Wav2Vec2Bert()}
