"""A trained model as a folder without pickle, written and loaded again.

config.json          format, versions, frame length, the codec's fingerprint, the `model` section
model.safetensors    weights; above 5 GB several files with model.safetensors.index.json
llm/                 the LLM's config and tokenizer
codec/               the codec, unless it was left out
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from s2s_model.model_section import saved_section, with_overrides
from s2s_model.names import first_line, folder_or_hub_name, instead_of_hub, not_here
from s2s_model.weights import cast_weights, put_weights, read_safetensors, unshared_state

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel

FORMAT, FORMAT_VERSION = "s2s_model", 1
CONFIG, LLM, CODEC = "config.json", "llm", "codec"
MAX_SHARD_SIZE = "5GB"


def save(
    model: "DuplexS2SModel", folder: Path, *, with_codec: bool = True, max_shard_size: str = MAX_SHARD_SIZE
) -> None:
    """Write the model to `folder`; an export that is already there is replaced.

    Every tensor keeps its dtype. LoRA's adapters are saved as they are, unless `merge_lora` folded them in before.
    The folder appears when it is whole.

    Args:
        model: its weights whole on one device.
        folder: where to write.
        with_codec: False leaves the codec out; the config then names it as the model's own config does.
        max_shard_size: the largest file of weights, e.g. "5GB".

    Raises:
        FileExistsError: `folder` holds something else.
        OSError: the system refused a write.
        ValueError: the weights are sharded over devices.
    """
    from safetensors import SafetensorError

    check_target(folder)
    try:
        with _whole_or_not(folder.absolute()) as partial:
            _write(model, partial, with_codec, max_shard_size)
    except SafetensorError as error:  # the disk is full, for example
        raise OSError(f"{folder} isn't written: {error}") from error


def load(
    name_or_folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    **overrides: Any,
) -> "DuplexS2SModel":
    """Load what `save` wrote, in eval mode. LLM and encoder come from the folder: nothing else is downloaded.

    Args:
        name_or_folder: a folder, or a name on the Hugging Face hub.
        device: where to put the model.
        dtype: bring all weights to this dtype, e.g. "bfloat16"; None keeps each as it was saved.
        revision: branch, tag or commit on the hub.
        overrides: keys of the `model` section to set otherwise, such as `pretrained_audio_codec`, a codec elsewhere,
            or `attn_implementation`.

    Raises:
        FileNotFoundError: no such folder, and no such name on the hub; or a file is missing.
        ValueError: a file or another format, an unknown key, another codec than the model was trained with, or
            weights that don't fit; the message names what differs.
    """
    from s2s_model.duplex import DuplexS2SModel

    folder = _find(str(name_or_folder), revision)
    saved = _read_config(folder)
    section = with_overrides(_resolve(saved["model"], folder), overrides)
    try:
        model = DuplexS2SModel(section, frame_length_s=saved["frame_length_s"])
    except (ValueError, OSError) as error:
        if "model.pretrained_audio_codec" not in str(error) or (folder / CODEC).is_dir():
            raise
        raise ValueError(
            f"{error}. {folder} was saved without its codec: give from_pretrained(..., pretrained_audio_codec=...)"
        ) from error
    if model.codec_fingerprint != saved["codec_fingerprint"]:
        raise ValueError(
            f"model.pretrained_audio_codec is {section['pretrained_audio_codec']}, whose fingerprint is "
            f"{model.codec_fingerprint}, but {folder} was trained with {saved['codec_fingerprint']}: its codes mean "
            "other sounds. Give that codec"
        )
    put_weights(model, read_safetensors(folder), str(folder))
    if dtype is not None:
        cast_weights(model, dtype)
    return model.to(device).eval()


def check_target(folder: Path) -> None:
    """Check that `save` may write to `folder`: nothing is there, or an empty folder, or an export.

    Raises:
        FileExistsError: something else is there.
    """
    if not folder.exists() or (folder.is_dir() and (is_export(folder) or not any(folder.iterdir()))):
        return
    raise FileExistsError(f"{folder} exists and is no export of a model, so it isn't replaced: give another folder")


def _write(model: "DuplexS2SModel", folder: Path, with_codec: bool, max_shard_size: str) -> None:
    from huggingface_hub import save_torch_state_dict

    model.llm.config.save_pretrained(folder / LLM)
    model.tokenizer.save_pretrained(folder / LLM)
    if with_codec:
        model.audio_codec.save_pretrained(folder / CODEC)
    (folder / CONFIG).write_text(json.dumps(_describe(model, with_codec), indent=2) + "\n")
    save_torch_state_dict(unshared_state(model), folder, max_shard_size=max_shard_size)
    for weights in folder.rglob("*.safetensors"):  # safetensors lets the owner alone read what it writes
        shutil.copymode(folder / CONFIG, weights)


def _describe(model: "DuplexS2SModel", with_codec: bool) -> dict[str, Any]:
    from s2s_model import __version__

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "s2s_model_version": __version__,
        "frame_length_s": model.frame_length_s,
        "codec_fingerprint": model.codec_fingerprint,
        "model": saved_section(model, LLM, CODEC if with_codec else model.cfg.pretrained_audio_codec),
    }


def _resolve(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The section with paths within the folder made absolute."""
    inside: dict[str, Any] = {
        "pretrained_llm": str(folder / LLM),
        "pretrained_weights": False,  # whatever a config from elsewhere says: nothing else is read
        "pretrained_asr": None,
        "tokenizer_path": None,
    }
    if (folder / CODEC).is_dir():
        inside["pretrained_audio_codec"] = str(folder / CODEC)
    return {**section, **inside}


def _find(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    if Path(name).expanduser().is_file():
        raise ValueError(
            f"{name} is a file, and from_pretrained reads folders of save_pretrained: NeMo's checkpoints are loaded by "
            "DuplexS2SModel.from_nemo, and a run's checkpoint is exported by hatch run train:export"
        )
    source = folder_or_hub_name(name, "from_pretrained")
    if Path(source).is_dir():
        return Path(source).absolute()
    try:
        return Path(
            snapshot_download(source, revision=revision, allow_patterns=["*.json", "*.safetensors", "llm/*", "codec/*"])
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no model at {name!r}: {not_here(name)}, and the hub gives none of this name: {first_line(error)}; "
            f"{instead_of_hub('name_or_folder')}"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        saved = json.loads((folder / CONFIG).read_text())
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder} has no {CONFIG}: give a folder that save_pretrained wrote") from error
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} isn't JSON ({error}): save the model anew") from error
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(
            f"{folder / CONFIG} has no format {FORMAT!r}: give a folder that save_pretrained wrote; what NeMo wrote is "
            "loaded by DuplexS2SModel.from_nemo"
        )
    if saved.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format_version {saved.get('format_version')}, this s2s_model reads {FORMAT_VERSION}: use "
            f"s2s_model {saved.get('s2s_model_version')}, which wrote it"
        )
    return saved


def is_export(folder: Path) -> bool:
    """Whether `save` wrote the folder."""
    try:
        saved = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and saved.get("format") == FORMAT


@contextmanager
def _whole_or_not(folder: Path) -> Iterator[Path]:
    """A folder to write into, beside `folder`; it becomes `folder` at the end, or vanishes on an error."""
    partial, old = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("part", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # what a killed save left
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
