"""The `model:` section of a config, with the key names of NeMo's s2s_duplex.yaml."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class ModelConfig:
    """What the model is made of and how it is trained."""

    pretrained_llm: str = MISSING  # Hugging Face name or folder of a causal LM
    pretrained_audio_codec: str = MISSING  # NeMo name or .nemo path of an AudioCodecModel
    pretrained_asr: str | None = None  # NeMo name or .nemo path; its encoder and preprocessor become perception
    scoring_asr: str | None = None  # the ASR that transcribes the agent in validation; s2s_eval reads it
    pretrained_weights: bool = True  # False: the same architectures at random init
    tokenizer_path: str | None = None  # where the tokenizer lies, if not with the LLM

    # Three different tokens; needed only where the tokenizer names none of its own, or one twice.
    text_pad_token: str | None = None  # stands where the agent's text channel is silent
    text_bos_token: str | None = None  # opens an agent turn
    text_eos_token: str | None = None  # closes an agent turn

    perception: dict[str, Any] = field(default_factory=dict)  # NeMo's AudioPerceptionModule
    duplex_user_channel_weight: float = 1.0  # factor on the encoded user frames

    audio_loss_weight: float = 4.0  # the paper's 4:3
    text_loss_weight: float = 3.0

    hide_codes_share: float = 0.0  # share of training dialogues in which the LLM doesn't see its own codes

    freeze_params: list[str] = field(default_factory=list)  # regexes over parameter names; each must match
    prevent_freeze_params: list[str] = field(default_factory=list)  # regexes that win over freeze_params
    lora: dict[str, Any] | None = None  # not supported yet: refused

    optimizer: dict[str, Any] = field(default_factory=lambda: {"_target_": "torch.optim.AdamW", "lr": 3e-4})
    lr_scheduler: dict[str, Any] | None = None  # a _target_ with its arguments, stepped every optimizer step
