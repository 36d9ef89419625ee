"""The `model` section of a config, changed so that it builds a model whose weights come from elsewhere."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from s2s_model.config import ModelConfig

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel


def saved_section(model: "DuplexS2SModel", llm: str, codec: str) -> dict[str, Any]:
    """The section that builds `model` again, of plain values; `llm` and `codec` are where these will lie.

    What decides the model's parts is written out: the encoder's description, the control tokens, LoRA's places.
    """
    section = OmegaConf.to_container(OmegaConf.structured(model.cfg), resolve=True)
    assert isinstance(section, dict)
    built = {str(key): value for key, value in section.items()} | {
        "pretrained_weights": False,
        "pretrained_llm": llm,
        "pretrained_asr": None,
        "pretrained_lora": None,
        "pretrained_audio_codec": codec,
        "tokenizer_path": None,
        "text_pad_token": model.tokenizer.pad_token,
        "text_bos_token": model.tokenizer.bos_token,
        "text_eos_token": model.tokenizer.eos_token,
        "perception": model.perception.resolved_config(),
        "lora": _lora(model),
    }
    return built | {key: _matching(built[key], model) for key in ("freeze_params", "prevent_freeze_params")}


def without_weights(section: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section of a training run, so that it builds the same parts at random weights.

    Where a pretrained ASR was the encoder, `perception` held only what differs from it.
    """
    built = {**section, "pretrained_weights": False, "pretrained_lora": None}
    if section.get("pretrained_weights", True) and section.get("pretrained_asr") not in (None, "", "none"):
        from s2s_model.perception.build import is_hugging_face

        # NeMo's encoders bring their features along; for Hugging Face's the section's go before.
        dropped = () if is_hugging_face(section["perception"], str(section["pretrained_asr"])) else ("preprocessor",)
        perception = {key: value for key, value in section["perception"].items() if key not in dropped}
        encoder = {key: value for key, value in (perception.get("encoder") or {}).items() if key != "_target_"}
        built["perception"] = perception | {"encoder": encoder}
    return built


def with_overrides(section: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section with some keys set otherwise.

    Raises:
        ValueError: a key is unknown.
    """
    known = [field.name for field in fields(ModelConfig)]
    for key in overrides:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            raise ValueError(f"{key} is neither an argument nor a key of the model section{hint}")
    return {**section, **overrides}


def _lora(model: "DuplexS2SModel") -> dict[str, Any] | None:
    """The adapters that are there, None once they are merged; their places written out, as peft's defaults change."""
    adapters = getattr(model.llm, "peft_config", {})
    if model.cfg.lora is None or not adapters:
        return None
    targets = adapters["default"].target_modules
    return {**model.cfg.lora, "target_modules": sorted(targets) if isinstance(targets, set) else targets}


def _matching(patterns: list[str], model: "DuplexS2SModel") -> list[str]:
    """The patterns that still match a parameter: those of merged adapters would be refused at the next load."""
    names = [*(name for name, _ in model.named_parameters()), *model.audio_codec.parameter_names()]
    return [pattern for pattern in patterns if any(re.match(pattern, name) for name in names)]
