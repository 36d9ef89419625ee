"""The streaming encoder of the user's audio: NeMo's `AudioPerceptionModule`, one vector every frame."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from s2s_model.config import ModelConfig
from s2s_model.nemo_file import load_nemo
from s2s_model.targets import check_targets

FRAME_TOLERANCE_S = 1e-6


def build_perception(config: ModelConfig, hidden_size: int, frame_length_s: float) -> Any:
    """Build perception with outputs of `hidden_size`, its encoder pretrained if the config says so.

    Raises:
        ValueError: parts of `model.perception` are missing, or its frames aren't `frame_length_s` long.
    """
    from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule

    section = OmegaConf.create(dict(config.perception))
    check_targets(OmegaConf.to_container(section), "model.perception")
    section.output_dim = hidden_size
    named = config.pretrained_asr not in (None, "none")
    asr = _load_asr(str(config.pretrained_asr)) if config.pretrained_weights and named else None
    if asr is not None:
        overrides = section.get("encoder") or {}
        section.preprocessor = asr.cfg.preprocessor
        section.encoder = OmegaConf.merge(asr.cfg.encoder, overrides)
    for part in ("preprocessor", "encoder", "modality_adapter"):
        if part not in section:
            raise ValueError(
                f"model.perception.{part} is missing: describe it, or let it come from a pretrained ASR "
                "(model.pretrained_asr with model.pretrained_weights: true)"
            )
    with open_dict(section):
        perception = AudioPerceptionModule(section)
    if asr is not None:
        wanted = ("encoder.", "preprocessor.")
        state = {k: v for k, v in asr.state_dict().items() if k.startswith(wanted)}
        loaded = perception.load_state_dict(state, strict=False)
        missing = [k for k in loaded.missing_keys if k.startswith("encoder.")]
        if missing:
            raise ValueError(
                f"model.pretrained_asr: {config.pretrained_asr} has no weights for {len(missing)} tensors of the "
                f"encoder, {missing[0]} first: model.perception.encoder overrides its shape"
            )
    check_frame_length(perception, frame_length_s)
    return perception


def check_frame_length(perception: Any, frame_length_s: float) -> None:
    """Refuse an encoder whose frames aren't `frame_length_s` long."""
    actual = float(perception.token_equivalent_duration)
    if abs(actual - frame_length_s) > FRAME_TOLERANCE_S:
        raise ValueError(
            f"model.perception gives a vector every {actual * 1000:g} ms, data.frame_length asks for "
            f"{frame_length_s * 1000:g} ms: change the encoder's or the adapter's subsampling_factor"
        )


def _load_asr(name_or_path: str) -> Any:
    from nemo.collections.asr.models import ASRModel

    return load_nemo(ASRModel, name_or_path, key="model.pretrained_asr", kind="ASR model")


def source_sample_rate(perception: Any) -> int:
    """The sample rate that the encoder's features are made for."""
    config: DictConfig = perception.cfg.preprocessor
    return int(config.sample_rate)
