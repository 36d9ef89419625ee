"""Hugging Face encoders as perception: transformers' features and model, our adapter behind it.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `F` features, `H` hidden.
"""

import difflib
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from s2s_model.names import folder_or_hub_name, why_not_loaded
from s2s_model.perception.adapters import STACKING, StackingAdapter, build_adapter, unchecked, whole_factor
from s2s_model.perception.base import Perception, check_frame_length
from s2s_model.perception.hugging_face_encoders import FAMILIES, Family
from s2s_model.targets import instantiate

ENCODER_KEY = "model.perception.encoder"
SOURCE_KEY = "model.pretrained_asr"
DEFAULT_ADAPTER = {"_target_": STACKING}


class HuggingFacePerception(Perception):
    """transformers' feature extractor and encoder, an adapter and a projection."""

    def __init__(
        self, section: dict[str, Any], encoder: Any, extractor: Any, hidden_size: int, frame_length_s: float
    ) -> None:
        super().__init__(section, sample_rate=extractor.sampling_rate, frame_length_s=frame_length_s)
        self._family = FAMILIES[encoder.config.model_type]
        self._extractor = extractor
        self.encoder = encoder
        self.spec_augmentation = None
        if section.get("spec_augment") is not None:
            self.spec_augmentation = instantiate(section["spec_augment"], "model.perception.spec_augment")
        encoder_frame_s = self._family.frame_s(encoder, extractor)
        adapter_config = section.get("modality_adapter") or DEFAULT_ADAPTER
        if adapter_config.get("_target_") == STACKING and adapter_config.get("subsampling_factor") is None:
            whole_factor(encoder_frame_s, frame_length_s)
        self.modality_adapter, self.proj, section["modality_adapter"] = build_adapter(
            adapter_config, self._family.width(encoder.config), hidden_size, frame_length_s / encoder_frame_s
        )
        check_frame_length(encoder_frame_s * getattr(self.modality_adapter, "subsampling_factor", 1), frame_length_s)

    def forward(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor]:
        """Encode float32 audio [B, S] of `input_signal_length` [B] samples to [B, T, H]; returns it with lengths [B].

        A last frame that isn't full counts.
        """
        audio = [row[:n] for row, n in zip(input_signal.float(), input_signal_length.tolist(), strict=True)]
        vectors_BTC, lens_B = self._family.encode(self.encoder, self._extractor, audio, self._augment)
        adapted_BCT, frames_B = self._adapt(vectors_BTC.transpose(1, 2), lens_B)
        return self.proj(adapted_BCT.transpose(1, 2)), frames_B

    def _augment(self, features_BFT: Tensor, frames_B: Tensor) -> Tensor:
        if self.spec_augmentation is None or not self.training:
            return features_BFT
        augmented: Tensor = self.spec_augmentation(input_spec=features_BFT, length=frames_B)
        return augmented

    def _adapt(self, vectors_BCT: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        adapter: Any = self.modality_adapter
        with nullcontext() if isinstance(adapter, StackingAdapter) else unchecked():
            adapted_BCT, frames_B = adapter(audio_signal=vectors_BCT, length=lens_B)
        return adapted_BCT, frames_B

    def blocks(self) -> list[nn.Module]:
        """The layers of the encoder, then those of the adapter."""
        return [*self._family.blocks(self.encoder), *getattr(self.modality_adapter, "layers", [])]

    def stream(self, batch_size: int, compile: bool = False) -> NoReturn:
        """Refused: these encoders hear the whole recording before they give the first vector.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{ENCODER_KEY}: a {self.encoder.config.model_type} hears the whole recording, it can't stream: use a "
            "causal NeMo encoder for live sessions"
        )


def build_hugging_face(
    section: dict[str, Any], source: str | None, pretrained_weights: bool, hidden_size: int, frame_length_s: float
) -> HuggingFacePerception:
    """Build the encoder of the folder or name `source`, or what `section` describes.

    Raises:
        FileNotFoundError: the path doesn't exist.
        ValueError: it can't be loaded, a key is unknown, or sizes don't fit.
    """
    source = folder_or_hub_name(source, SOURCE_KEY) if source else None
    described = dict(section.get("encoder") or {})
    model_type, config = _config(described, source)
    family = FAMILIES[model_type]
    encoder = _load(family, source, config) if source and pretrained_weights else family.build(config)
    extractor = _extractor(family, config, section.get("preprocessor"), source)
    given, taken = family.check_features(config, extractor)
    if given != taken:
        raise ValueError(
            f"model.perception.preprocessor gives {given} features, {ENCODER_KEY} takes {taken}: set both to the same"
        )
    section = {
        **section,
        "output_dim": hidden_size,
        "encoder": _plain_config(config),
        "preprocessor": extractor.to_dict(),
    }
    return HuggingFacePerception(section, encoder, extractor, hidden_size, frame_length_s)


def _config(described: dict[str, Any], source: str | None) -> tuple[str, Any]:
    """The encoder's config: the pretrained one's, with what `model.perception.encoder` sets over it."""
    import transformers

    overrides = {k: v for k, v in described.items() if v is not None and k != "model_type"}
    if source is None:
        config_class = getattr(transformers, _family(described["model_type"]).config_class)
        base = config_class()
    else:
        base = _pretrained_config(source)
        if described.get("model_type", base.model_type) != base.model_type:
            raise ValueError(
                f"{ENCODER_KEY}.model_type is {described['model_type']!r}, model.pretrained_asr {source} is a "
                f"{base.model_type!r}: remove one of them"
            )
    family = _family(base.model_type)
    _check_keys(overrides, set(base.to_dict()))
    values = base.to_dict() | family.defaults | overrides
    return base.model_type, type(base).from_dict(values)


def _family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise ValueError(f"{ENCODER_KEY}.model_type is {model_type!r}: use one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _pretrained_config(source: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{SOURCE_KEY}: no encoder's config at {source!r}: {why_not_loaded(source, SOURCE_KEY, error)}"
        ) from error


def _check_keys(overrides: dict[str, Any], known: set[str]) -> None:
    if "_target_" in overrides:
        raise ValueError(
            f"{ENCODER_KEY} describes {overrides['_target_']}, but model.pretrained_asr is an encoder of transformers: "
            "remove encoder, preprocessor and modality_adapter from model.perception (on the command line "
            "model.perception.encoder=null and so on)"
        )
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ValueError(f"{ENCODER_KEY}.{key} is no key of this encoder's config{hint}")


def _load(family: Family, source: str, config: Any) -> Any:
    try:
        encoder, missing = family.load(source, config)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{SOURCE_KEY}: no weights for the encoder at {source!r}: {why_not_loaded(source, SOURCE_KEY, error)}"
        ) from error
    if missing:
        raise ValueError(
            f"model.pretrained_asr: {source} has no weights for {len(missing)} tensors of the encoder, {missing[0]} "
            f"first: {ENCODER_KEY} overrides its shape"
        )
    return encoder


def _extractor(family: Family, config: Any, described: dict[str, Any] | None, source: str | None) -> Any:
    """The described feature extractor, else the pretrained encoder's, else the family's with the encoder's sizes."""
    import transformers

    extractor_class = getattr(transformers, family.extractor_class)
    if described:
        kind = described.get("feature_extractor_type", family.extractor_class)
        if kind != family.extractor_class:
            raise ValueError(
                f"model.perception.preprocessor.feature_extractor_type is {kind!r}: this encoder's is "
                f"{family.extractor_class}"
            )
        sizes = family.extractor_sizes(config)
        return extractor_class(**sizes | {k: v for k, v in described.items() if k != "feature_extractor_type"})
    if source is not None and (not Path(source).is_dir() or _has_extractor(Path(source))):
        try:
            return transformers.AutoFeatureExtractor.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{SOURCE_KEY}: no feature extractor at {source!r}: {why_not_loaded(source, SOURCE_KEY, error)}"
            ) from error
    return extractor_class(**family.extractor_sizes(config))


def _has_extractor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json"))


def _plain_config(config: Any) -> dict[str, Any]:
    """The config's keys that differ from the family's defaults, without what transformers adds about a file."""
    about_file = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"}
    kept = set(type(config)().to_dict()) - about_file  # old files of the hub hold keys that no class knows
    return {**{k: v for k, v in config.to_diff_dict().items() if k in kept}, "model_type": config.model_type}
