"""The `model:` section of a config, with the key names of NeMo's s2s_duplex.yaml."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from s2s_model.sampling import GenerationConfig


@dataclass
class TokenWeights:
    """Factors on the text loss of a frame, by what its label is."""

    pad: float = 1.0  # nothing is said
    bos: float = 1.0  # a turn begins
    eos: float = 1.0  # a turn ends
    text: float = 1.0  # any other token


@dataclass
class ModelConfig:
    """What the model is made of and how it is trained."""

    pretrained_llm: str = MISSING  # Hugging Face name or folder of a causal LM, or a .gguf file
    pretrained_audio_codec: str = MISSING  # a NeMo codec's name or .nemo path; Hugging Face name or folder of another
    pretrained_asr: str | None = None  # NeMo name or .nemo path, or a Hugging Face encoder: becomes perception
    scoring_asr: str | None = None  # the ASR that transcribes the agent in validation; s2s_eval reads it
    pretrained_weights: bool = True  # False: the same architectures at random init
    tokenizer_path: str | None = None  # where the tokenizer lies, if not with the LLM
    attn_implementation: str | None = None  # of the LLM: sdpa, eager, flash_attention_2; by default the family's own
    audio_codec_num_codebooks: int | None = None  # use the first so many of the codec's codebooks
    audio_codec_precision: str | None = None  # float16 or float32 on a GPU; null: float16 where the codec agrees in it

    # Three different tokens; needed only where the tokenizer names none of its own, or one twice.
    text_pad_token: str | None = None  # stands where the agent's text channel is silent
    text_bos_token: str | None = None  # opens an agent turn
    text_eos_token: str | None = None  # closes an agent turn

    perception: dict[str, Any] = field(default_factory=dict)  # NeMo's AudioPerceptionModule

    # Factors on what the LLM reads.
    duplex_user_channel_weight: float = 1.0  # on the encoded user frames
    duplex_text_channel_weight: float = 1.0  # on the agent's text embeddings
    duplex_asr_text_weight: float = 1.0  # on the user's text embeddings
    start_from_text: bool = False  # True: before training sound adds nothing to the text that the LLM reads

    # Frames by which a channel is moved against the audio it belongs to.
    delay_speech_channel_by: int = 1  # the agent's codes; 1 frame is the paper's
    delay_text_channel_by: int = 0  # the agent's text, later
    advance_text_channel_by: int = 0  # the agent's text, earlier
    delay_text_eos_by: int = 0  # the token that closes a turn of the agent's, later
    delay_source_text_by: int = 0  # the user's text, which can only be written when it was heard

    predict_user_text: bool = False  # a third channel: the model writes what the user says

    audio_loss_weight: float = 4.0  # the paper's 4:3
    text_loss_weight: float = 3.0
    asr_loss_weight: float = 1.0  # of the user's text
    token_loss_weight: TokenWeights = field(default_factory=TokenWeights)  # of both text channels
    codebook_loss_weight: list[float] = field(default_factory=list)  # one a codebook; their mean counts as 1
    max_nonfinite_steps: int = 10  # steps that may be skipped for a loss of NaN or infinity before the run fails

    hide_codes_share: float = 0.0  # share of training dialogues in which the LLM doesn't see its own codes

    freeze_params: list[str] = field(default_factory=list)  # regexes over parameter names; each must match
    prevent_freeze_params: list[str] = field(default_factory=list)  # regexes that win over freeze_params
    lora: dict[str, Any] | None = None  # peft.LoraConfig's keys: adapters in the LLM, whose own weights are frozen
    pretrained_lora: str | None = None  # folder or .safetensors of a peft adapter: model.lora starts there

    optimizer: dict[str, Any] = field(default_factory=lambda: {"_target_": "torch.optim.AdamW", "lr": 3e-4})
    param_groups: list[dict[str, Any]] = field(default_factory=list)  # [{match: regex, lr: ..., ...}]; the first counts
    decay_norms_and_biases: bool = False  # True: the optimizer's weight_decay acts on norms and biases too
    lr_scheduler: dict[str, Any] | None = None  # a _target_ with its arguments, stepped every optimizer step

    generation: GenerationConfig = field(default_factory=GenerationConfig)  # how validation and inference choose tokens
