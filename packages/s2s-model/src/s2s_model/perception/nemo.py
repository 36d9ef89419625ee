"""NeMo's encoders, put together as its `AudioPerceptionModule` is: the parameters have the same names.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `F` mel features, `C` channels, `H` hidden.
"""

import logging
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, Self

import torch
from torch import Tensor, nn

from s2s_model.codecs.base import float32_only
from s2s_model.nemo_file import hush_nemo, load_nemo
from s2s_model.perception.adapters import NEMO_MODULES, build_adapter, unchecked
from s2s_model.perception.base import Perception, check_frame_length
from s2s_model.perception.local_attention import attend_locally
from s2s_model.perception.pointwise import multiply_pointwise
from s2s_model.perception.streaming import PerceptionStream
from s2s_model.perception.subsampling import subsample_channels_last
from s2s_model.targets import instantiate

log = logging.getLogger(__name__)
ASR_KEY = "model.pretrained_asr"
MULTI_LAYER = f"{NEMO_MODULES}.MultiLayerProjectionConnector"


def speed_up(conformer: Any) -> None:
    """Let a NeMo `ConformerEncoder`, or what is like one, compute the same by faster means, in place."""
    # Processes would tell each other their longest audio in each forward, and wait for those without a batch.
    conformer.sync_max_audio_length = False
    attend_locally(conformer)
    multiply_pointwise(conformer)
    subsample_channels_last(conformer)


class NemoPerception(Perception):
    """Mel features, SpecAugment in training, a NeMo encoder, an adapter and a projection."""

    def __init__(self, section: dict[str, Any], hidden_size: int, frame_length_s: float) -> None:
        with float32_only("cpu"):  # its window and filter bank
            preprocessor = instantiate(section["preprocessor"], "model.perception.preprocessor")
        # NeMo sets a wrapper of the bound method there: a deep copy would go on computing with this one's buffers.
        preprocessor.featurizer.__dict__.pop("forward", None)
        sample_rate = preprocessor.featurizer.sample_rate
        super().__init__(section, sample_rate=sample_rate, frame_length_s=frame_length_s)
        self.preprocessor = preprocessor
        encoder = instantiate(section["encoder"], "model.perception.encoder")
        _check_feature_size(section, encoder)
        self.spec_augmentation = None
        if section.get("spec_augment") is not None:
            self.spec_augmentation = instantiate(section["spec_augment"], "model.perception.spec_augment")
        encoder_frame_s = preprocessor.featurizer.hop_length / sample_rate * encoder.subsampling_factor
        self.modality_adapter, self.proj, section["modality_adapter"] = build_adapter(
            section["modality_adapter"], encoder._feat_out, hidden_size, frame_length_s / encoder_frame_s
        )
        if section["modality_adapter"]["_target_"] == MULTI_LAYER:
            self.encoder_multilayer = _all_layers(encoder, self.modality_adapter)
        else:
            self.encoder = encoder
        for part in (encoder, self.modality_adapter):
            speed_up(part)
        self.features_per_frame = round(frame_length_s * sample_rate / preprocessor.featurizer.hop_length)
        check_frame_length(encoder_frame_s * getattr(self.modality_adapter, "subsampling_factor", 1), frame_length_s)

    @property
    def nemo_encoder(self) -> Any:
        """The encoder, wherever it hangs: NeMo puts it below `encoder_multilayer` if the adapter reads all layers."""
        return self.encoder_multilayer.encoder if "encoder_multilayer" in self._modules else self.encoder

    def forward(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor]:
        """Encode float32 audio [B, S] of `input_signal_length` [B] samples to [B, T, H]; returns it with lengths [B].

        A causal Conformer gives one vector more than there are whole frames: its first one hears only the first
        13 ms, and the last one what came after the last but one.
        """
        return self.encode(*self.augmented_features(input_signal, input_signal_length))

    def augmented_features(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """As `features`, with SpecAugment in training."""
        with unchecked():
            features_BFT, frames_B = self.features(audio_BS, lens_B)
            if self.spec_augmentation is not None and self.training:
                features_BFT = self.spec_augmentation(input_spec=features_BFT, length=frames_B)
        return features_BFT, frames_B

    def encode(self, features_BFT: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode features; see `forward`."""
        with unchecked():
            encoder = self._modules.get("encoder_multilayer", self.nemo_encoder)
            encoded, encoded_B = encoder(audio_signal=features_BFT, length=frames_B)
            adapted_BCT, adapted_B = self.modality_adapter(audio_signal=encoded, length=encoded_B)
        return self.proj(adapted_BCT.transpose(1, 2)), adapted_B

    def check_repeatable(self) -> None:
        """Refuse what the host decides by chance in each step.

        Raises:
            ValueError: with the key.
        """
        for key, part in (("encoder", self.nemo_encoder), ("modality_adapter", self.modality_adapter)):
            if any(getattr(part, "layer_drop_probs", None) or []):
                raise ValueError(
                    f"parallel.cuda_graphs: model.perception.{key}.stochastic_depth_drop_prob leaves out layers by "
                    "chance, which a graph can't: set it to 0, or parallel.cuda_graphs=false"
                )
            if len(getattr(part, "att_context_size_all", None) or []) > 1:
                raise ValueError(
                    f"parallel.cuda_graphs: model.perception.{key}.att_context_size has several contexts, drawn by "
                    "chance, which a graph can't: give one, or set parallel.cuda_graphs=false"
                )

    def features(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, F, T], computed in float32 and given in the weights' dtype, and their lengths [B]."""
        if self.training:
            audio_BS = audio_BS.clone()  # NeMo adds its dither in place
        features_BFT, frames_B = self.preprocessor(input_signal=audio_BS, length=lens_B)
        return features_BFT.to(next(self.nemo_encoder.parameters()).dtype), frames_B

    def blocks(self) -> list[nn.Module]:
        """The layers of the encoder, then those of the adapter."""
        return [*getattr(self.nemo_encoder, "layers", []), *getattr(self.modality_adapter, "layers", [])]

    def stream(self, batch_size: int, compile: bool = False) -> PerceptionStream:
        """`batch_size` live sessions; see `PerceptionStream`.

        Raises:
            ValueError: the encoder or the adapter hears the future or normalises over the recording.
        """
        return PerceptionStream(self, batch_size, compile)

    def subsampling(self) -> list[nn.Module]:
        """The first convolutions: they run on 10 ms features, so their activations are the largest of all."""
        convolutions = [m for m in [getattr(self.nemo_encoder, "pre_encode", None)] if m is not None]
        return [m for m in convolutions if not isinstance(m, nn.Linear)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device or dtype; window and filter bank stay float32, which the features need."""
        featurizer = self.preprocessor.featurizer
        exact = dict(featurizer.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            moved = getattr(featurizer, name)
            if moved.dtype != buffer.dtype:
                setattr(featurizer, name, buffer.to(moved.device))
        return self


def build_nemo(
    section: dict[str, Any], source: str | None, pretrained_weights: bool, hidden_size: int, frame_length_s: float
) -> NemoPerception:
    """Build what `section` describes, encoder and preprocessor from the ASR `source` where there is one.

    Raises:
        FileNotFoundError: the path of the ASR doesn't exist.
        ValueError: a part is missing or can't be built, or the weights don't fit it.
    """
    hush_nemo()
    section = {**section, "output_dim": hidden_size}
    asr = _load_asr(source) if source is not None and pretrained_weights else None
    if asr is not None:
        if section.get("preprocessor"):
            log.warning("model.perception.preprocessor is left out: the features are those of %s", source)
        section |= _from_asr(asr.cfg, section)
    elif source is not None and "_target_" not in (section.get("encoder") or {}):
        described = {"preprocessor": section["preprocessor"]} if section.get("preprocessor") else {}
        section |= _from_asr(_load_asr_config(source), section) | described
    elif source is not None:
        log.warning(
            "model.pretrained_asr isn't read: model.perception.encoder describes an encoder, and "
            "model.pretrained_weights is false"
        )
    if not section.get("modality_adapter"):
        raise ValueError(
            "model.perception.modality_adapter is missing: describe one, between encoder and LLM; "
            f"{{_target_: {NEMO_MODULES}.IdentityConnector}} is none but a projection"
        )
    for part in ("preprocessor", "encoder"):
        if not section.get(part):
            raise ValueError(
                f"model.perception.{part} is missing: describe it, or let it come from a pretrained ASR "
                "(model.pretrained_asr with model.pretrained_weights: true)"
            )
    for part in ("encoder", "modality_adapter"):
        section[part] = _with_sdpa(section[part])
    perception = NemoPerception(section, hidden_size, frame_length_s)
    if asr is not None:
        assert source is not None
        _load_weights(perception, asr.state_dict(), source)
    return perception


def _load_asr(name_or_path: str) -> Any:
    from nemo.collections.asr.models import ASRModel

    return load_nemo(ASRModel, name_or_path, key=ASR_KEY, kind=_kind(name_or_path))


def _load_asr_config(name_or_path: str) -> Any:
    from nemo.collections.asr.models import ASRModel

    config_only = SimpleNamespace(
        from_pretrained=partial(ASRModel.from_pretrained, return_config=True),
        restore_from=partial(ASRModel.restore_from, return_config=True),
    )
    return load_nemo(config_only, name_or_path, key=ASR_KEY, kind=_kind(name_or_path))


def _kind(name_or_path: str) -> str:
    """What an error says was looked for: a name of the hub was tried with transformers before."""
    on_hub = "/" in name_or_path and not name_or_path.endswith(".nemo")
    return "ASR model, and transformers finds no whisper or wav2vec2-bert there" if on_hub else "ASR model"


def _from_asr(asr_config: Any, section: dict[str, Any]) -> dict[str, Any]:
    """The ASR's preprocessor and encoder, with what `model.perception.encoder` sets over the encoder's keys."""
    from omegaconf import OmegaConf

    overrides = {k: v for k, v in (section.get("encoder") or {}).items() if v is not None}
    preprocessor = OmegaConf.to_container(asr_config.preprocessor, resolve=True)
    encoder = OmegaConf.to_container(asr_config.encoder, resolve=True)
    assert isinstance(encoder, dict)
    if "use_pytorch_sdpa" not in overrides:
        encoder.pop("use_pytorch_sdpa", None)  # how attention is computed is no part of what was trained
    return {"preprocessor": preprocessor, "encoder": encoder | overrides}


def _with_sdpa(part: dict[str, Any]) -> dict[str, Any]:
    """Torch's fused attention, unless the config says otherwise: the same numbers in less time and memory."""
    is_conformer = str(part.get("_target_")).rpartition(".")[2] == "ConformerEncoder"
    return {"use_pytorch_sdpa": True, **part} if is_conformer else part


def _check_feature_size(section: dict[str, Any], encoder: Any) -> None:
    features = section["preprocessor"].get("features")
    feat_in = getattr(encoder, "_feat_in", features)
    if features is not None and feat_in != features:
        raise ValueError(
            f"model.perception.encoder.feat_in is {feat_in}, model.perception.preprocessor.features is {features}: "
            "set both to the same number. With a pretrained ASR the features are the ASR's: describe only what differs "
            "from its encoder (model.perception.encoder=null takes it as it is)"
        )


def _all_layers(encoder: Any, adapter: Any) -> nn.Module:
    from nemo.collections.asr.modules.conformer_encoder import ConformerMultiLayerFeatureExtractor

    extractor: nn.Module = ConformerMultiLayerFeatureExtractor(
        encoder, layer_idx_list=adapter.target_layer_ids, include_final_output=adapter.include_final_output
    )
    return extractor


def _load_weights(perception: NemoPerception, state: dict[str, Tensor], source: str) -> None:
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "preprocessor": {}}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part in parts:
            parts[part][rest] = value
    encoder = perception.nemo_encoder
    wanted = encoder.state_dict()
    missing = [name for name in wanted if name not in parts["encoder"]]
    if missing:
        raise ValueError(
            f"model.pretrained_asr: {source} has no weights for {len(missing)} tensors of the "
            f"encoder, encoder.{missing[0]} first: model.perception.encoder overrides its shape"
        )
    for name, value in wanted.items():
        if value.shape != parts["encoder"][name].shape:
            raise ValueError(
                f"model.pretrained_asr: encoder.{name} of {source} has shape {list(parts['encoder'][name].shape)}, "
                f"model.perception.encoder asks for {list(value.shape)}: remove what overrides its shape"
            )
    with torch.no_grad():
        encoder.load_state_dict(parts["encoder"], strict=False)
        perception.preprocessor.load_state_dict(parts["preprocessor"], strict=False)
