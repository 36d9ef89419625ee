"""Names of pretrained models: a folder here, or a name on the Hugging Face hub."""

import difflib
from pathlib import Path

FILES = (".nemo", ".gguf")  # kinds of single files that a key may name


def folder_or_hub_name(name: str, key: str) -> str:
    """The folder that `name` is, `~` expanded, or `name` itself if it may be one of the hub.

    A mistyped path is refused here: the hub, asked for it, would try for a minute and then blame the network.

    Args:
        name: what the user gave.
        key: what errors begin with, such as the config key `model.pretrained_llm`.

    Raises:
        FileNotFoundError: it can only be a path, and nothing is there.
        ValueError: it is a file.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file():
        raise ValueError(f"{key}: {name} is a file: give the folder that it lies in")
    if name.startswith(("/", ".", "~")):
        raise FileNotFoundError(f"{key}: no folder {name} (in {Path.cwd()}){did_you_mean(path) or ': check the path'}")
    if path.parent != Path() and path.parent.is_dir() and not _is_cached(name):
        hint = did_you_mean(path) or ": check the path, or download the model of this name and give its folder"
        raise FileNotFoundError(
            f"{key}: no folder {name} (in {Path.cwd()}), and the hub isn't asked, as {path.parent} is a folder here"
            f"{hint}"
        )
    return name


def why_not_loaded(name: str, key: str, error: BaseException) -> str:
    """Why loading `name` failed with `error`: for a folder its first line, for a name of the hub what to do as well."""
    if Path(name).is_dir() or not isinstance(error, OSError):
        return first_line(error)
    return f"{not_here(name)}, and the hub gives none of this name: {first_line(error)}; {instead_of_hub(key)}"


def not_here(name: str) -> str:
    """That no folder has this name, and which may be meant."""
    return f"it is no folder (in {Path.cwd()}{did_you_mean(Path(name), '; ')})"


def instead_of_hub(key: str) -> str:
    """What to do where the hub doesn't give a model."""
    from huggingface_hub import constants

    advice = f"download it and give its folder ({key}=/path)"
    return advice if constants.HF_HUB_OFFLINE else f"{advice}, or set HF_HUB_OFFLINE=1 to use only what is cached"


def did_you_mean(path: Path, before: str = ": ") -> str:
    """`did you mean NEAREST?` behind `before`, where a folder, or a model's file, has a name near to `path`; else "".

    Nothing is at `path`.
    """
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    rest = path.relative_to(missing)
    siblings = {p.name: p / rest for p in missing.parent.iterdir() if not p.name.startswith(".")}
    models = [name for name, found in siblings.items() if found.is_dir() or (found.suffix in FILES and found.is_file())]
    near = difflib.get_close_matches(missing.name, models, n=1)
    return f"{before}did you mean {siblings[near[0]]}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _is_cached(name: str) -> bool:
    """Whether the hub's cache here holds a model of this name."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return (Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")).is_dir()
