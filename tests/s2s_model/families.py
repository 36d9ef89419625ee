"""Tiny LLMs of the families that people use, each with the traits of the released model, at random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.s2s_model.builders import BOS, EOS, PAD, VOCAB_SIZE, make_llm

HIDDEN_SIZE = 32
WINDOW = 8  # shorter than the 24 frames of a test
# Weights this large give logits at which a scale or a cap shows.
INITIALIZER_RANGE = 0.2


SMALL = {
    "vocab_size": VOCAB_SIZE,
    "initializer_range": INITIALIZER_RANGE,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
LLAMA_LIKE = SMALL | {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def make_config(class_name: str, **traits: Any) -> Any:
    """A config of transformers, by the name of its class."""
    import transformers

    return getattr(transformers, class_name)(**traits)


def of_llama_shape(class_name: str, **traits: Any) -> Any:
    """A config of two layers, four heads and two key heads."""
    return make_config(class_name, **(LLAMA_LIKE | traits))


def _rope(theta: float, **traits: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta} | traits


def _tinyllama() -> Any:
    return of_llama_shape("LlamaConfig", tie_word_embeddings=False, rope_parameters=_rope(1e4))


def _llama3() -> Any:
    scaling = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = _rope(5e5, rope_type="llama3", original_max_position_embeddings=64, **scaling)
    return of_llama_shape("LlamaConfig", tie_word_embeddings=True, rope_parameters=rope)


def _gemma() -> Any:
    return of_llama_shape("GemmaConfig", tie_word_embeddings=True, num_key_value_heads=1, head_dim=16)


def _gemma2() -> Any:
    return of_llama_shape(
        "Gemma2Config",
        tie_word_embeddings=True,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    )


def _gemma3() -> Any:
    return of_llama_shape(
        "Gemma3TextConfig",
        tie_word_embeddings=True,
        num_hidden_layers=6,  # five with a window, one without
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
    )


def _qwen2_5() -> Any:
    return of_llama_shape("Qwen2Config", tie_word_embeddings=True, rope_parameters=_rope(1e6))


def _qwen3() -> Any:
    return of_llama_shape("Qwen3Config", tie_word_embeddings=True, head_dim=16, rope_parameters=_rope(1e6))


def _mistral() -> Any:
    return of_llama_shape("MistralConfig", tie_word_embeddings=False, sliding_window=WINDOW, rope_parameters=_rope(1e4))


def _phi3() -> Any:
    return of_llama_shape("Phi3Config", tie_word_embeddings=False, sliding_window=WINDOW, rope_parameters=_rope(1e4))


def _smollm2() -> Any:
    return of_llama_shape("LlamaConfig", tie_word_embeddings=True, rope_parameters=_rope(1e5))


def _smollm3() -> Any:
    # The last of every four layers has no positions.
    rope = _rope(5e6)
    return of_llama_shape(
        "SmolLM3Config", tie_word_embeddings=True, num_hidden_layers=4, no_rope_layer_interval=4, rope_parameters=rope
    )


def _olmo2() -> Any:
    rope = _rope(5e5)
    return of_llama_shape("Olmo2Config", tie_word_embeddings=False, num_key_value_heads=4, rope_parameters=rope)


def _granite() -> Any:
    return of_llama_shape(
        "GraniteConfig",
        tie_word_embeddings=True,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.125,
        logits_scaling=8.0,
        rope_parameters=_rope(1e7),
    )


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama-tinyllama": _tinyllama,
    "llama-3": _llama3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "qwen2.5": _qwen2_5,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "phi3": _phi3,
    "smollm2": _smollm2,
    "smollm3": _smollm3,
    "olmo2": _olmo2,
    "granite": _granite,
}


def make_family(name: str, folder: Path, config: Any = None) -> str:
    """Write the config of a family (by default that of `FAMILIES`) and a word-level tokenizer."""
    path = make_llm(folder)
    config = FAMILIES[name]() if config is None else config
    config.architectures = [_architecture(config)]
    config.save_pretrained(folder)
    return path


def make_family_weights(name: str, folder: Path, seed: int = 0) -> str:
    """As `make_family`, with random weights."""
    from transformers import AutoModelForCausalLM

    path = make_family(name, folder)
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(FAMILIES[name]()).save_pretrained(folder)
    return path


def _architecture(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])
