"""Checkpoints of NeMo's `DuplexS2SModel` (nemo.collections.speechlm2, NeMo 3.0) into our model.

Three kinds are read: a Lightning `.ckpt`, a folder of NeMo's `save_pretrained`, and a folder in parts, as Lightning's
ModelParallelStrategy writes it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from s2s_model.config import ModelConfig
from s2s_model.llm import KEY
from s2s_model.model_section import with_overrides, without_weights
from s2s_model.names import folder_or_hub_name
from s2s_model.pretrained import is_export
from s2s_model.weights import cast_weights, put_weights, read_checkpoint, read_safetensors

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel

log = logging.getLogger(__name__)

CODEC_PREFIX = "audio_codec."
EMBEDDING, HEAD, BODY = "embed_tokens.", "lm_head.", "llm."
AUDIO_TABLES = "embed_audio_tokens."
RECOMPUTED = ("_control_codes",)  # follow from the codec
OF_OTHERS = {"model_type", "architectures"}  # keys of a config that say nothing about the model


def load_nemo_checkpoint(
    checkpoint: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    frame_length_s: float = 0.08,
    trusted: bool = False,
    **overrides: Any,
) -> "DuplexS2SModel":
    """Load a checkpoint of NeMo's DuplexS2SModel, in eval mode.

    Args:
        checkpoint: a Lightning `.ckpt`, a folder with config.json and model.safetensors, or a folder in parts.
        device: where to put the model.
        dtype: bring all weights to this dtype, e.g. "bfloat16"; None keeps each as it was saved.
        frame_length_s: `data.frame_length` of the training config, which the checkpoint doesn't hold.
        trusted: read pickles that run code. Only for files whose origin is known.
        overrides: keys of the `model` section to set otherwise: above all `pretrained_llm`, `pretrained_asr` and
            `pretrained_audio_codec`, as the paths in a checkpoint are of the machine where it was trained.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: it is of another kind, can't be read without `trusted`, its config builds no model, it was
            trained with another codec, or weights are left over or missing; the message names them.
    """
    from s2s_model.duplex import DuplexS2SModel

    path = Path(checkpoint).expanduser()
    config, state = _read(path, trusted)
    section = _control_tokens(with_overrides(_section(config, path), overrides))
    try:
        model = DuplexS2SModel(section, frame_length_s=frame_length_s)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the config in {path} can't be built here: {str(error).rstrip('.')}. Paths in a checkpoint are of the "
            "machine where it was trained: give yours, from_nemo(checkpoint, pretrained_llm=..., "
            "pretrained_audio_codec=...)"
        ) from error
    _check_codec(state, model.audio_codec, path)
    state = _our_names(state, model)
    if _differ(model.llm, state):
        _untie(model.llm)
    put_weights(model, state, str(path))
    if dtype is not None:
        cast_weights(model, dtype)
    return model.to(device).eval()


# --- reading ---------------------------------------------------------------------------------------------------


def _read(path: Path, trusted: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The `model` section of NeMo's config, and the state dict."""
    _check_kind(path)
    if path.is_dir() and (path / "config.json").is_file():
        return _of_folder(json.loads((path / "config.json").read_text()), path), read_safetensors(path)
    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    checkpoint = read_checkpoint(path, trusted)
    config = (checkpoint.get("hyper_parameters") or {}).get("cfg")
    if config is None or "state_dict" not in checkpoint:
        raise ValueError(
            f"{path} isn't of NeMo's DuplexS2SModel: it needs a state_dict and hyper_parameters.cfg, and holds "
            f"{', '.join(sorted(checkpoint)) or 'nothing'}. A run's checkpoint of this project is exported by "
            "hatch run train:export, and its folder is loaded by from_pretrained"
        )
    plain = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}, checkpoint["state_dict"]


def _check_kind(path: Path) -> None:
    """Refuse what another function loads."""
    if path.is_dir() and is_export(path):
        raise ValueError(f"{path} is a folder of this project's save_pretrained: use from_pretrained({str(path)!r})")
    if path.is_file() and path.suffix == ".nemo":
        raise ValueError(
            f"{path} is a .nemo archive: from_nemo reads Lightning's .ckpt and folders of NeMo's save_pretrained"
        )


def _of_folder(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config of a folder: its encoder is described in full, and NeMo's export puts LLM and tokenizer beside it."""
    found: dict[str, Any] = {"pretrained_asr": None}
    if (folder / "llm_backbone" / "config.json").is_file():
        found["pretrained_llm"] = str(folder / "llm_backbone")
    if (folder / "tokenizer_config.json").is_file():
        found["tokenizer_path"] = str(folder)
    return config | found


def _section(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our `model` section for NeMo's: the same keys, nothing pretrained is read."""
    known = {field.name for field in fields(ModelConfig)}
    unknown = sorted(set(config) - known - OF_OTHERS)
    if unknown:
        log.warning("%s: keys of its config that this model doesn't have are left out: %s", path, ", ".join(unknown))
    return without_weights({key: value for key, value in config.items() if key in known})


def _control_tokens(section: dict[str, Any]) -> dict[str, Any]:
    """The section with the tokens that NeMo falls back to where a tokenizer names none."""
    from transformers import AutoTokenizer

    try:
        name = folder_or_hub_name(section.get("tokenizer_path") or section["pretrained_llm"], KEY)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError):  # building the model says it better
        return section
    fallbacks = {
        "pad": tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0),
        "bos": tokenizer.cls_token,
        "eos": tokenizer.sep_token,
    }
    for role, token in fallbacks.items():
        key = f"text_{role}_token"
        if section.get(key) is None and getattr(tokenizer, f"{role}_token") is None and token is not None:
            log.warning("the tokenizer names no %s token: model.%s is %r, as NeMo has it", role, key, token)
            section[key] = token
    return section


# --- names -----------------------------------------------------------------------------------------------------


def _our_names(state: Mapping[str, Tensor], model: "DuplexS2SModel") -> dict[str, Tensor]:
    """The state dict by our names: NeMo holds the LLM in three parts, and a table for each codebook."""
    llm = model.llm
    prefixes = {
        EMBEDDING: f"llm.{_name_of(llm, llm.get_input_embeddings())}.",
        HEAD: f"llm.{_name_of(llm, llm.get_output_embeddings())}.",
        BODY: f"llm.{llm.base_model_prefix}.",
    }
    renamed: dict[str, Tensor] = {}
    tables: dict[int, Tensor] = {}
    for name, value in state.items():
        index = name.removeprefix(AUDIO_TABLES).removesuffix(".weight")
        if name.startswith(CODEC_PREFIX) or name in RECOMPUTED:
            continue
        if name.startswith(AUDIO_TABLES) and index.isdecimal():
            tables[int(index)] = value
            continue
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        renamed[name if prefix is None else prefixes[prefix] + name.removeprefix(prefix)] = value
    if tables:
        renamed[f"{AUDIO_TABLES}weight"] = torch.cat([tables[k] for k in sorted(tables)])
    return renamed


def _name_of(parent: nn.Module, wanted: nn.Module) -> str:
    return next(str(name) for name, module in parent.named_modules() if module is wanted)


# --- the codec -------------------------------------------------------------------------------------------------


def _check_codec(state: Mapping[str, Tensor], codec: Any, path: Path) -> None:
    """Refuse a codec other than the checkpoint's own, whose weights NeMo saves too."""
    from s2s_model.codecs.nemo import FINGERPRINTED

    theirs = {
        name.removeprefix(CODEC_PREFIX): value
        for name, value in state.items()
        if name.startswith(tuple(CODEC_PREFIX + part for part in FINGERPRINTED))
    }
    if not theirs:
        return
    own = {name: value for name, value in codec._model.state_dict().items() if name.startswith(FINGERPRINTED)}
    for name in sorted(theirs.keys() | own.keys()):
        # The checkpoint's may be rounded: in bf16-true Lightning casts the codec too.
        if name not in own or name not in theirs or not _equal_rounded(own[name], theirs[name]):
            raise ValueError(
                f"model.pretrained_audio_codec isn't the codec that {path} was trained with: {CODEC_PREFIX}{name} "
                "differs, so its codes mean other sounds. Give that codec: from_nemo(..., pretrained_audio_codec=...)"
            )


def _equal_rounded(exact: Tensor, rounded: Tensor) -> bool:
    return exact.shape == rounded.shape and torch.equal(exact.to(rounded.dtype), rounded)


# --- embeddings that came apart ----------------------------------------------------------------------------------


def _differ(llm: Any, state: Mapping[str, Tensor]) -> bool:
    """Whether the LLM has one matrix for embedding and head, and the checkpoint two."""
    embedding, head = llm.get_input_embeddings(), llm.get_output_embeddings()
    if embedding.weight is not head.weight:
        return False
    first, second = (state.get(f"llm.{_name_of(llm, module)}.weight") for module in (embedding, head))
    return first is not None and second is not None and not torch.equal(first, second)


def _untie(llm: Any) -> None:
    """Give the head a matrix of its own: under FSDP NeMo trains the two apart, whatever the LLM's config says."""
    log.warning(
        "the checkpoint's text embedding and head differ though the LLM's config ties them: loaded untied, as trained"
    )
    head = llm.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    llm.config.tie_word_embeddings = False
    llm.config.get_text_config(decoder=True).tie_word_embeddings = False
