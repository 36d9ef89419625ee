"""The duplex speech-to-speech model: perception + LLM + codec, its loss and its generation."""

from typing import TYPE_CHECKING

from s2s_model.config import ModelConfig

if TYPE_CHECKING:
    from s2s_model.codecs import AudioCodec, load_codec
    from s2s_model.duplex import DuplexS2SModel

__version__ = "0.5.10"
__all__ = ["AudioCodec", "DuplexS2SModel", "ModelConfig", "load_codec"]

_LAZY = {"DuplexS2SModel": "duplex", "AudioCodec": "codecs", "load_codec": "codecs"}


def __getattr__(name: str) -> object:
    """Import the model on first use: NeMo takes 15 s, and a config can be checked without it."""
    if name not in _LAZY:
        raise AttributeError(f"module 's2s_model' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"s2s_model.{_LAZY[name]}"), name)
