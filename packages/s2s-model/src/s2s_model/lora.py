"""Low-rank adapters in the LLM (LoRA, Hu et al., 2021, arXiv 2106.09685), by the peft library."""

import difflib
import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from s2s_model.llm import llm_blocks, text_config
from s2s_model.names import first_line

log = logging.getLogger(__name__)
KEY, PRETRAINED = "model.lora", "model.pretrained_lora"
ADAPTER, SETTINGS = "adapter_model.safetensors", "adapter_config.json"  # peft's names
SCALE = ("lora_alpha", "use_rslora", "use_dora", "alpha_pattern", "rank_pattern")  # what weights count for
TRAINED = r"^.+\.lora_.+$"  # the adapters' parameters, for `freeze`'s prevent_freeze_params

_NUMBERS = {"r", "lora_alpha", "lora_dropout"}
_TRAIN_BY_NAME = "name what else is trained in model.prevent_freeze_params"
_NEEDS_MORE = "such a start is computed from data or from quantised weights; set init_lora_weights to true or pissa"
_REFUSED = {
    "modules_to_save": _TRAIN_BY_NAME,
    "trainable_token_indices": _TRAIN_BY_NAME,
    "layer_replication": "it changes the LLM's layers, which a merge can't undo",
    "lora_bias": "a merge can't fold it into layers without a bias",
    "loftq_config": _NEEDS_MORE,
    "eva_config": _NEEDS_MORE,
    "corda_config": _NEEDS_MORE,
    "lora_ga_config": _NEEDS_MORE,
    "inference_mode": "adapters are here to be trained",
    "alora_invocation_tokens": "it reads token ids, and the LLM reads sums of embeddings",
    "peft_type": "this section is LoRA's",
}


def inject_lora(llm: nn.Module, config: Mapping[str, Any]) -> list[str]:
    """Put adapters beside linear layers of a causal LM, in place; everything else in it is frozen.

    A layer `…q_proj` keeps its path; its weight becomes `…q_proj.base_layer.weight`. The adapters are in the dtype of
    their layer. B starts at zero: the output is that of the LLM until the first step.

    Args:
        llm: a causal LM of transformers.
        config: peft.LoraConfig's keys. Without `target_modules` peft's choice for the family is taken, and where it
            has none, the linear layers of the repeated blocks.

    Returns:
        The names of the adapters' parameters in `llm`; they alone require gradients.

    Raises:
        ValueError: an unknown or unsupported key, a value that peft refuses, or a target that the LLM doesn't have.
    """
    from peft import LoraConfig, inject_adapter_in_model

    _check_keys(config, [f.name for f in fields(LoraConfig)])
    kwargs = dict(config)
    if kwargs.get("target_modules") is None and kwargs.get("target_parameters") is None:
        kwargs["target_modules"] = _default_targets(llm)
    try:
        inject_adapter_in_model(LoraConfig(**kwargs), llm)
    except (ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise ValueError(f"{KEY}: {error}") from error
    _check_targets(llm, config.get("target_modules"))
    _check_tied(llm)
    return [name for name, parameter in llm.named_parameters() if parameter.requires_grad]


def load_lora(llm: nn.Module, adapter: str) -> None:
    """Let the adapters of `inject_lora` start from those that peft, or `save_lora`, saved, in place.

    Args:
        llm: with adapters.
        adapter: a folder with `adapter_model.safetensors`, or such a file.

    Raises:
        ValueError: no such file, or its tensors or their scale aren't those of the adapters.
    """
    from peft import set_peft_model_state_dict
    from peft.utils import get_peft_model_state_dict

    path = Path(adapter).expanduser()
    path = path / ADAPTER if path.is_dir() else path
    try:
        saved = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{PRETRAINED}: {adapter} is no adapter that peft saved: {first_line(error)}") from error
    saved = {name.removeprefix("base_model.model."): value for name, value in saved.items()}
    _check_scale(llm, path.parent / SETTINGS)
    own = get_peft_model_state_dict(llm)
    for name in sorted(own.keys() ^ saved.keys()) or [name for name in own if own[name].shape != saved[name].shape]:
        shapes = [list(state[name].shape) if name in state else "missing" for state in (saved, own)]
        raise ValueError(
            f"{PRETRAINED}: {path} isn't an adapter of {KEY}'s shape and target_modules: {name} is {shapes[0]} there, "
            f"{shapes[1]} here"
        )
    set_peft_model_state_dict(llm, saved)


def _check_scale(llm: Any, settings: Path) -> None:
    """Refuse an adapter by whose settings, where they lie beside it, its weights count otherwise than here."""
    if not settings.is_file():
        return
    theirs = json.loads(settings.read_text())
    own = llm.peft_config["default"].to_dict()
    for key in SCALE:
        if key in theirs and theirs[key] != own[key]:
            raise ValueError(
                f"{PRETRAINED}: {settings} has {key}: {theirs[key]!r}, {KEY} has {own[key]!r}: give them the same"
            )


def save_lora(llm: nn.Module, folder: Path) -> None:
    """Write the adapters of `inject_lora` as peft does, for `load_lora`.

    Raises:
        OSError: `folder` can't be written.
    """
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = {f"base_model.model.{name}": value.contiguous() for name, value in get_peft_model_state_dict(llm).items()}
    save_file(state, folder / ADAPTER)
    adapters: Any = getattr(llm, "peft_config", {})
    adapters["default"].save_pretrained(str(folder))


def merge_lora(llm: nn.Module) -> None:
    """Add the adapters to the weights and remove them, in place: the state dict has the LLM's own names again.

    Raises:
        ValueError: there are none, or a merged weight isn't finite.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in llm.named_modules() if isinstance(module, BaseTunerLayer)}
    if not adapted:
        raise ValueError("there are no adapters to merge: model.lora wasn't set")
    for layer in adapted.values():
        layer.merge(safe_merge=True)
    for name, layer in adapted.items():
        if not any(name.startswith(f"{outer}.") for outer in adapted):
            llm.set_submodule(name, layer.get_base_layer())
    if hasattr(llm, "peft_config"):
        del llm.peft_config


def _check_keys(config: Mapping[str, Any], known: list[str]) -> None:
    for key, value in config.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(
                f"{KEY}.{key} is unknown{hint}: the keys are those of peft.LoraConfig, above all r, lora_alpha, "
                "lora_dropout and target_modules"
            )
        if key in _REFUSED and value and not (key == "peft_type" and value == "LORA"):
            raise ValueError(f"{KEY}.{key} isn't supported: {_REFUSED[key]}")
    if str(config.get("task_type") or "CAUSAL_LM") != "CAUSAL_LM":
        raise ValueError(f"{KEY}.task_type is {config['task_type']}: the LLM is a CAUSAL_LM; leave the key out")
    for key in _NUMBERS & config.keys():
        if not isinstance(config[key], int | float) or isinstance(config[key], bool):
            raise ValueError(f"{KEY}.{key} is {config[key]!r}: give a number")
    if config.get("init_lora_weights") in {"loftq", "eva", "corda", "lora_ga"}:
        raise ValueError(f"{KEY}.init_lora_weights is {config['init_lora_weights']!r}: {_NEEDS_MORE}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{KEY}.bias is {config['bias']!r}, only 'none' is supported: {_TRAIN_BY_NAME}")


def _default_targets(llm: nn.Module) -> list[str] | str:
    """peft's own targets for the family; else the names of the linear layers in the blocks."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    family = text_config(llm).model_type
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(family)
    targets: list[str] | str
    if known is not None:
        targets = known if isinstance(known, str) else list(known)
    else:
        blocks = llm_blocks(llm)
        names = {name for block in blocks for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        targets = sorted(names)
    log.info("%s.target_modules: %s (%s)", KEY, targets, "peft's choice" if known else f"all linear layers of {family}")
    return targets


def _check_targets(llm: nn.Module, targets: list[str] | str | None) -> None:
    """Refuse a target that matches no layer; peft minds only if none does."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [name for name, module in llm.named_modules() if isinstance(module, BaseTunerLayer)]
    for target in [] if targets is None or isinstance(targets, str) else targets:
        if not any(f".{name}".endswith(f".{target}") for name in adapted):
            raise ValueError(f"{KEY}.target_modules: {target!r} is the end of no layer's path; {adapted[0]} is a layer")


def _check_tied(llm: Any) -> None:
    """Refuse adapters on a weight that the embedding and the head share: merging them would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    on_either = isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer)
    if on_either and embedding.weight is head.weight:
        raise ValueError(
            f"{KEY}.target_modules takes in the text embedding or head, which share one weight in this LLM: "
            "leave both out"
        )
