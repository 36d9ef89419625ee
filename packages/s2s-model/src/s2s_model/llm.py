"""Any Hugging Face causal LM, by name, by folder, with its weights or from its config."""

from typing import Any

import torch
from torch import Tensor, nn


def load_llm(name_or_path: str, *, pretrained_weights: bool) -> Any:
    """Load a causal LM whole, in torch's default dtype: tied embeddings stay tied, and its own head is used.

    Raises:
        ValueError: nothing loadable lies there; the message says what was tried.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if pretrained_weights:
            return AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.get_default_dtype())
        config = AutoConfig.from_pretrained(name_or_path)
        return AutoModelForCausalLM.from_config(config, dtype=torch.get_default_dtype())
    except (OSError, ValueError) as error:
        weights = "weights" if pretrained_weights else "config (model.pretrained_weights is false)"
        first_line = str(error).splitlines()[0]
        raise ValueError(f"model.pretrained_llm: no causal LM {weights} at {name_or_path!r}: {first_line}") from error


def text_logits(llm: Any, hidden: Tensor) -> Tensor:
    """Text logits [..., V] of hidden states [..., H], scaled (Granite, Cohere) and capped (Gemma 2) by the family."""
    head: nn.Module = llm.get_output_embeddings()
    logits: Tensor = head(hidden) * getattr(llm.config, "logit_scale", 1.0)
    logits = logits / getattr(llm.config, "logits_scaling", 1.0)
    cap = getattr(llm.config, "final_logit_softcapping", None)
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits
