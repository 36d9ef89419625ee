"""Finding a codec: a `.nemo` file, a folder, or a name of the Hugging Face hub or of NeMo's registry."""

import json
from pathlib import Path
from typing import Any, TypedDict

import torch

from s2s_model.codecs.base import AudioCodec, check_precision, float32_only
from s2s_model.codecs.huggingface import CODECS, load_huggingface_codec
from s2s_model.codecs.nemo import MODEL_TYPE, load_nemo_codec, load_nemo_folder
from s2s_model.names import first_line, folder_or_hub_name, instead_of_hub, not_here


class _Options(TypedDict):
    key: str
    num_codebooks: int | None
    precision: str | None


def load_codec(
    name_or_path: str,
    *,
    key: str = "codec",
    num_codebooks: int | None = None,
    precision: str | None = None,
    precision_key: str = "codec",
) -> AudioCodec:
    """Load a codec to the CPU, frozen.

    Args:
        name_or_path: a `.nemo` file; a folder of `save_pretrained`, ours or transformers'; or a name: of the Hugging
            Face hub (mimi, encodec, dac) or of NeMo's registry.
        key: the config key that errors begin with, but for a precision that there isn't.
        num_codebooks: how many of its codebooks to use (K); None takes all, or those that it was saved with.
        precision: in which it computes on a GPU, "float16" or "float32" (there cuDNN's TF32 counts as float32). None
            takes float16 for NeMo's HiFi-GAN codecs that agree with float32 in it, and float32 for others. On the CPU
            it is always float32.
        precision_key: the config key of `precision`.

    Raises:
        FileNotFoundError: the path doesn't exist.
        ValueError: what lies there is no codec that can be used, or not with `num_codebooks` or `precision`.
    """
    check_precision(precision, precision_key)
    options = _Options(key=key, num_codebooks=num_codebooks, precision=precision)
    # Under bf16-true Lightning makes bf16 the default while it builds.
    with float32_only("cpu"), torch.inference_mode(False):
        if name_or_path.endswith(".nemo"):
            return load_nemo_codec(name_or_path, **options)
        source = folder_or_hub_name(name_or_path, key)
        if Path(source).is_dir():
            return _from_folder(Path(source), options)
        return _by_name(source, options)


def _from_folder(folder: Path, options: _Options) -> AudioCodec:
    key = options["key"]
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{key}: {folder} needs a config.json with a model_type ({type(error).__name__}: {error}): "
            "give a folder that save_pretrained wrote"
        ) from error
    if model_type == MODEL_TYPE:
        return load_nemo_folder(folder, config, **options)
    _check_type(model_type, str(folder), key)
    return load_huggingface_codec(str(folder), **options)


def _by_name(name: str, options: _Options) -> AudioCodec:
    from transformers import AutoConfig

    key = options["key"]
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        no_config = first_line(error)
    else:
        _check_type(config.model_type, name, key)
        return load_huggingface_codec(name, **options)
    try:
        return load_nemo_codec(name, **options)
    except FileNotFoundError as error:
        no_nemo = first_line(error)
    except ValueError as error:
        if error.__cause__ is None:  # it was found, and can't be used
            raise
        no_nemo = first_line(error.__cause__)
    raise ValueError(
        f"{key}: no codec {name!r}: {not_here(name)}, and neither the hub nor NeMo's registry gives one of this name; "
        f"{instead_of_hub(key)}. transformers says: {no_config}; NeMo says: {no_nemo}"
    )


def _check_type(model_type: str, where: str, key: str) -> None:
    if model_type not in CODECS:
        known = ", ".join(sorted([*CODECS, MODEL_TYPE]))
        raise ValueError(f"{key}: {where} is a {model_type!r}, which is no codec known here: use one of {known}")
