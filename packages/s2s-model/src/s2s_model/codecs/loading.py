"""Finding a codec: a `.nemo` file, a folder, or a name of the Hugging Face hub or of NeMo's registry."""

import json
from pathlib import Path
from typing import Any

import torch

from s2s_model.codecs.base import AudioCodec, float32_only
from s2s_model.codecs.huggingface import CODECS, load_huggingface_codec
from s2s_model.codecs.nemo import MODEL_TYPE, load_nemo_codec, load_nemo_folder
from s2s_model.names import first_line, folder_or_hub_name, instead_of_hub, not_here


def load_codec(name_or_path: str, *, key: str = "codec", num_codebooks: int | None = None) -> AudioCodec:
    """Load a codec to the CPU, frozen and in float32.

    Args:
        name_or_path: a `.nemo` file; a folder of `save_pretrained`, ours or transformers'; or a name: of the Hugging
            Face hub (mimi, encodec, dac) or of NeMo's registry.
        key: the config key that errors begin with.
        num_codebooks: how many of its codebooks to use (K); None takes all, or those that it was saved with.

    Raises:
        FileNotFoundError: the path doesn't exist.
        ValueError: what lies there is no codec that can be used, or not with `num_codebooks`.
    """
    # Under bf16-true Lightning makes bf16 the default while it builds.
    with float32_only("cpu"), torch.inference_mode(False):
        if name_or_path.endswith(".nemo"):
            return load_nemo_codec(name_or_path, key=key, num_codebooks=num_codebooks)
        source = folder_or_hub_name(name_or_path, key)
        if Path(source).is_dir():
            return _from_folder(Path(source), key, num_codebooks)
        return _by_name(source, key, num_codebooks)


def _from_folder(folder: Path, key: str, num_codebooks: int | None) -> AudioCodec:
    try:
        config = json.loads((folder / "config.json").read_text())
        model_type = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{key}: {folder} needs a config.json with a model_type ({type(error).__name__}: {error}): "
            "give a folder that save_pretrained wrote"
        ) from error
    if model_type == MODEL_TYPE:
        return load_nemo_folder(folder, config, key=key, num_codebooks=num_codebooks)
    _check_type(model_type, str(folder), key)
    return load_huggingface_codec(str(folder), key=key, num_codebooks=num_codebooks)


def _by_name(name: str, key: str, num_codebooks: int | None) -> AudioCodec:
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        no_config = first_line(error)
    else:
        _check_type(config.model_type, name, key)
        return load_huggingface_codec(name, key=key, num_codebooks=num_codebooks)
    try:
        return load_nemo_codec(name, key=key, num_codebooks=num_codebooks)
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
