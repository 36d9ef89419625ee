"""Loading a NeMo model by name or from a `.nemo` file, with errors that name the config key."""

import logging
from pathlib import Path
from typing import Any


def hush_nemo() -> None:
    """Keep NeMo's and its OneLogger's start-up chatter off the screen; errors stay. Call it before NeMo is imported."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    logging.getLogger("nemo_logger").addFilter(_is_error)  # NeMo sets the level itself when it is imported


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def load_nemo(model_class: Any, name_or_path: str, *, key: str, kind: str) -> Any:
    """Load a `model_class` to the CPU: a path that ends in `.nemo`, or a name in NeMo's registry.

    Raises:
        FileNotFoundError: the path doesn't exist.
        ValueError: it can't be loaded; the message names `key` and calls the model a NeMo `kind`.
    """
    try:
        if not name_or_path.endswith(".nemo"):
            return model_class.from_pretrained(name_or_path, map_location="cpu")
        if not Path(name_or_path).is_file():
            where = "" if Path(name_or_path).is_absolute() else f" (in {Path.cwd()})"
            raise FileNotFoundError(f"{key}: no file {name_or_path}{where}: check the path")
        return model_class.restore_from(name_or_path, map_location="cpu")
    except FileNotFoundError:
        raise
    except Exception as error:  # tarfile, pickle, hydra and the hub each raise their own
        raise ValueError(
            f"{key}: {name_or_path} can't be loaded as a NeMo {kind} ({type(error).__name__}: {error})"
        ) from error
