"""Any Hugging Face causal LM: by name, folder or GGUF file, with its weights or from its config.

Shapes: `H` hidden, `V` text vocabulary.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2s_model.names import did_you_mean, first_line, folder_or_hub_name, why_not_loaded

log = logging.getLogger(__name__)
KEY = "model.pretrained_llm"


def load_llm(
    name_or_path: str,
    *,
    pretrained_weights: bool,
    attn_implementation: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a causal LM whole: tied embeddings stay tied, and its own head is used.

    Of a model that also sees or hears, the text part is taken.

    Args:
        name_or_path: a Hugging Face name, a folder, a `.gguf` file, or `org/repo/file.gguf` on the hub.
        pretrained_weights: False builds the architecture at random weights.
        attn_implementation: transformers' name of an attention, e.g. `eager`, `sdpa`, `flash_attention_2`.
        dtype: of weights that are loaded; by default, and for random ones, torch's default dtype.

    Raises:
        FileNotFoundError: a path that doesn't exist.
        ValueError: nothing loadable lies there, the attention doesn't fit the family, or the family computes its
            logits in a way that `text_logits` doesn't know; the message names the config key.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    path, where = pretrained_source(name_or_path, KEY)
    try:
        config = AutoConfig.from_pretrained(path, **where)
        options = {
            "dtype": (dtype if pretrained_weights else None) or torch.get_default_dtype(),
            "attn_implementation": _attention(_text_part(config), attn_implementation),
        }
        if pretrained_weights:
            llm = _load_weights(path, config, options | where)
        else:
            llm = AutoModelForCausalLM.from_config(_text_part(config), **options)
    except _SettledError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise _load_error(path, pretrained_weights, attn_implementation, error) from error
    llm = _text_model(llm)
    check_head(llm)
    return llm


def pretrained_source(name_or_path: str, key: str) -> tuple[str, dict[str, str]]:
    """What transformers' `from_pretrained` takes: a name or folder, and `gguf_file` if a GGUF file is meant.

    Errors begin with `key`.

    Raises:
        FileNotFoundError: a path that doesn't exist.
        ValueError: a GGUF path that is neither a file here nor `org/repo/file.gguf`, or the gguf package is missing.
    """
    if not name_or_path.endswith(".gguf"):
        return folder_or_hub_name(name_or_path, key), {}
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{key} is a GGUF file, which the gguf package reads: pip install 's2s-model[gguf]' ({error})"
        ) from error
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    parts = name_or_path.split("/")
    if len(parts) < 3 or parts[0] in {"", ".", "..", "~"}:
        raise ValueError(
            f"{key}: no file {name_or_path} (in {Path.cwd()}){did_you_mean(path)}: give the path of a GGUF file, or "
            "org/repo/file.gguf for one on the hub"
        )
    return "/".join(parts[:2]), {"gguf_file": "/".join(parts[2:])}


def text_config(llm: Any) -> Any:
    """The config of the LLM's text part."""
    return _text_part(llm.config)


def hidden_size(llm: Any) -> int:
    """H: what the LLM reads and what its heads read.

    Raises:
        ValueError: the two differ.
    """
    reads, gives = (int(m.weight.shape[1]) for m in (llm.get_input_embeddings(), llm.get_output_embeddings()))
    if reads != gives:
        raise ValueError(f"{KEY}: it reads vectors of {reads} and gives vectors of {gives}; both must be of one size")
    return reads


def llm_body(llm: Any) -> nn.Module:
    """The transformer without heads.

    `llm_body(llm)(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state` is [B, T, H]. It is causal of itself:
    positions count from 0, and right padding needs no mask.

    Raises:
        ValueError: the family has no such part.
    """
    body: nn.Module | None = llm.base_model
    if body is llm:  # the family names its part other than its class says (Llama 4)
        body = getattr(llm, "model", None)
    if body is None:
        raise ValueError(f"{KEY}: {type(llm).__name__} has no transformer apart from its head")
    return body


def llm_blocks(llm: Any) -> list[nn.Module]:
    """The repeated decoder layers, first to last.

    Raises:
        ValueError: no list of as many layers as the config names.
    """
    num_layers = text_config(llm).num_hidden_layers
    lists = {n: m for n, m in llm_body(llm).named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers}
    if not lists:
        raise ValueError(f"{KEY}: {type(llm).__name__} has no list of its {num_layers} layers")
    outermost = min(lists, key=lambda name: name.count("."))
    return list(lists[outermost])


def text_logits(llm: Any, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Text logits [..., V] of the body's hidden states [..., H], scaled and capped as the family does it.

    By the LLM's own head, or another one of its kind.

    Cohere and Falcon-H1 multiply, Granite divides, Gemma 2 and RecurrentGemma cap (Gemma 2, arXiv 2408.00118).
    """
    head = llm.get_output_embeddings() if head is None else head
    scale, cap = logit_scale_and_cap(llm)
    logits: Tensor = head(hidden)
    logits = logits * scale if scale != 1.0 else logits
    return cap * torch.tanh(logits / cap) if cap else logits


def logit_scale_and_cap(llm: Any) -> tuple[float, float]:
    """What the family multiplies logits by, and what it caps them at (0: nothing)."""
    config = text_config(llm)
    scale = _number(config, "logit_scale", 1.0) * _number(config, "lm_head_multiplier", 1.0)
    cap = _number(config, "final_logit_softcapping", 0.0) or _number(config, "logits_soft_cap", 0.0)
    return scale / _number(config, "logits_scaling", 1.0), cap


@contextmanager
def whole_rows() -> Iterator[None]:
    """Within it transformers' models know that each row is one sequence from its first frame on.

    Else they ask the GPU whether a row holds several, and wait for the answer; and while a CUDA graph is captured, when
    they can't ask, they hide the future by a mask, which is slower than attention that is causal of itself.
    """
    from transformers import masking_utils

    known = {"find_packed_sequence_indices": lambda position_ids: None, "is_tracing": lambda *_: False}
    own = {name: getattr(masking_utils, name) for name in known}
    vars(masking_utils).update(known)
    try:
        yield
    finally:
        vars(masking_utils).update(own)


@contextmanager
def exact_positions(module: nn.Module) -> Iterator[None]:
    """Cast a module inside this: rotary frequencies keep their float32, as transformers loads them.

    In bf16 the phase of a frame after some minutes would be off by more than a radian.
    """
    exact = {name: buffer for name, buffer in module.named_buffers() if name.endswith("inv_freq")}
    yield
    for name, buffer in exact.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        setattr(owner, leaf, buffer.to(getattr(owner, leaf).device))


@torch.no_grad()
def check_head(llm: Any) -> None:
    """Compare body and `text_logits`, fed with embeddings, with the LLM's own logits on two tokens.

    Nothing is done for weights on meta.

    Raises:
        ValueError: they differ: the family's head, or its use of token ids, isn't known here.
    """
    embedding = llm.get_input_embeddings()
    if embedding.weight.is_meta:
        return
    vocab_size = embedding.weight.shape[0]
    ids_BT = torch.tensor([[vocab_size // 3, vocab_size // 2]], device=embedding.weight.device)
    training = llm.training
    llm.eval()
    own = llm(input_ids=ids_BT, use_cache=False).logits
    ours = text_logits(llm, llm_body(llm)(inputs_embeds=embedding(ids_BT), use_cache=False).last_hidden_state)
    llm.train(training)
    # The same operations in the same order: they may differ by rounding in the weights' dtype, not by more.
    roundings = 8 if embedding.weight.dtype == torch.float32 else 2  # an unknown cap may be off by 5 %
    tolerance = roundings * torch.finfo(embedding.weight.dtype).eps * own.abs().max().item()
    if not torch.allclose(ours.float(), own.float(), rtol=0, atol=tolerance):
        raise ValueError(
            f"{KEY}: {type(llm).__name__} computes its logits in a way that s2s_model.llm.text_logits doesn't know: "
            "use a model of another family, or add its scale or cap there"
        )


def _number(config: Any, name: str, default: float) -> float:
    value = getattr(config, name, None)
    return default if value is None else float(value)


def _text_part(config: Any) -> Any:
    return config.get_text_config(decoder=True)


class _SettledError(ValueError):
    """An error whose message needs no more words."""


def _load_weights(path: str, config: Any, options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import MODEL_FOR_CAUSAL_LM_MAPPING

    auto: Any = AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText
    llm, info = auto.from_pretrained(path, config=config, output_loading_info=True, **options)
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would leave them at random values
        raise _SettledError(
            f"{KEY}: the checkpoint at {path!r} lacks {len(missing)} weights of a {type(llm).__name__}, "
            f"{missing[0]} for one: check that it is complete and of this family"
        )
    return llm


def _attention(config: Any, asked: str | None) -> str | None:
    # torch's scaled_dot_product_attention has no soft cap, and transformers' wrapper of it goes on without.
    cap = _number(config, "attn_logit_softcapping", 0.0)
    if not cap:
        return asked
    if asked is not None and "sdpa" in asked:
        raise _SettledError(
            f"model.attn_implementation is {asked}, which doesn't apply the attention soft cap ({cap:g}) of "
            f"{config.model_type}: use eager, flex_attention or flash_attention_2"
        )
    if asked is None:
        log.info("model.attn_implementation: eager, for the attention soft cap (%g) of %s", cap, config.model_type)
    return asked or "eager"


def _text_model(llm: Any) -> Any:
    """The text part of a model that also sees or hears, as a causal LM of its own; others as they are."""
    from transformers import AutoModelForCausalLM

    config = text_config(llm)
    if config is llm.config:
        return llm
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    bodies = [m for m in llm.modules() if type(m) is type(text.base_model)]
    if len(bodies) != 1:
        raise ValueError(f"{KEY}: {type(llm).__name__} has {len(bodies)} text parts; use a text-only model")
    setattr(text, text.base_model_prefix, bodies[0])
    text.set_output_embeddings(llm.get_output_embeddings())
    text.config = bodies[0].config  # one object: the layers read their attention from it
    # The whole model's config may have tied them, the text part's not: what counts is how they are.
    text.config.tie_word_embeddings = text.get_output_embeddings().weight is text.get_input_embeddings().weight
    text.generation_config = llm.generation_config
    return text


def _load_error(path: str, pretrained_weights: bool, attention: str | None, error: Exception) -> ValueError:
    line = first_line(error)
    if attention is not None and ("attention" in line.lower() or attention in line):
        return ValueError(f"model.attn_implementation: {attention!r} can't be used: {line}")
    weights = "weights" if pretrained_weights else "config (model.pretrained_weights is false)"
    return ValueError(f"{KEY}: no causal LM {weights} at {path!r}: {why_not_loaded(path, KEY, error)}")
