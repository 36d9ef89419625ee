"""From the config to an encoder: whose it is, and who builds it."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2s_model.config import ModelConfig
from s2s_model.names import folder_or_hub_name
from s2s_model.perception.base import Perception
from s2s_model.perception.hugging_face_encoders import FAMILIES
from s2s_model.targets import check_targets

PERCEPTION_TARGET = "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule"
KEYS = (
    "target", "output_dim", "preprocessor", "encoder", "modality_adapter", "spec_augment", "activation_checkpointing"
)  # fmt: skip


def build_perception(config: ModelConfig, hidden_size: int, frame_length_s: float) -> Perception:
    """Build perception with outputs of `hidden_size` every `frame_length_s` seconds.

    The encoder is `model.pretrained_asr` (NeMo's by name or `.nemo` file, Hugging Face's by name or folder), or
    described in `model.perception`. With `model.pretrained_weights: false` it starts at random weights.

    Raises:
        FileNotFoundError: the path of the ASR doesn't exist.
        ValueError: a part is missing or can't be built, or the frames have another length.
    """
    section = _plain(config.perception)
    check_targets(section, "model.perception")
    check_keys(section)
    if section.get("target", PERCEPTION_TARGET) != PERCEPTION_TARGET:
        raise ValueError(
            f"model.perception.target is {section['target']}: only {PERCEPTION_TARGET} is known, remove it"
        )
    checkpointing = bool(section.get("activation_checkpointing"))
    source = None if config.pretrained_asr in (None, "", "none") else str(config.pretrained_asr)
    if source is not None and not source.endswith(".nemo"):
        source = folder_or_hub_name(source, "model.pretrained_asr")
    build = _build_hugging_face if is_hugging_face(section, source) else _build_nemo
    perception = build(section, source, config.pretrained_weights, hidden_size, frame_length_s)
    perception.activation_checkpointing(checkpointing)
    return perception


def check_keys(section: Mapping[str, Any]) -> None:
    """Refuse unknown keys of the `model.perception` section.

    Raises:
        ValueError: with the nearest known key.
    """
    for key in section:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(KEYS)}"
            raise ValueError(f"model.perception.{key} is unknown: {hint}")


def _plain(section: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(OmegaConf.create(dict(section)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _build_nemo(*arguments: Any) -> Perception:
    from s2s_model.perception.nemo import build_nemo  # NeMo takes 15 s to import

    return build_nemo(*arguments)


def _build_hugging_face(*arguments: Any) -> Perception:
    from s2s_model.perception.hugging_face import build_hugging_face

    return build_hugging_face(*arguments)


def is_hugging_face(section: dict[str, Any], source: str | None) -> bool:
    """Whether the encoder is one of transformers: described as such, or found at `source`."""
    encoder = section.get("encoder") or {}
    if "model_type" in encoder:
        return True
    if source is None or source.endswith(".nemo"):
        return False
    if Path(source).is_dir():
        _check_folder(Path(source))
        return True
    return "/" in source and _hub_model_type(source) in FAMILIES


def _check_folder(folder: Path) -> None:
    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"model.pretrained_asr: {folder} needs a config.json with a model_type ({type(error).__name__}: {error}): "
            "give a folder that save_pretrained wrote, or a .nemo file"
        ) from error
    if model_type not in FAMILIES:
        raise ValueError(
            f"model.pretrained_asr: {folder} is a {model_type!r}, which is no encoder known here: use one of "
            f"{', '.join(FAMILIES)}, or a .nemo file"
        )


def _hub_model_type(name: str) -> str | None:
    """The family of a model on the hub; None where it has no config.json, as NeMo's have none."""
    from transformers import PretrainedConfig

    try:
        found, _ = PretrainedConfig.get_config_dict(name)
    except OSError:
        return None
    model_type = found.get("model_type")
    return str(model_type) if model_type else None
