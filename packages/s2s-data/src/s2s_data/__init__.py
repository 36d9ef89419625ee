"""Duplex conversations as lhotse cuts, in tensors."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2s_data.augment.config import AugmentConfig
    from s2s_data.batch import DuplexBatch, Turn, empty_batch
    from s2s_data.blend import read_blend
    from s2s_data.check import Problem, check_shar
    from s2s_data.codes import AudioCodec, EncodeOptions, EncodeSummary, encode_shar
    from s2s_data.config import DataConfig, SourceConfig, TrainDataConfig, ValidationDataConfig
    from s2s_data.dataset import DuplexDataset
    from s2s_data.errors import DataError, UnreadableCutError
    from s2s_data.loader import TrainLoader, train_dataloader, validation_dataloaders
    from s2s_data.text_channel import FrameGrid, TextChannel, build_text_channel
    from s2s_data.tokenizer import TextTokenizer

__version__ = "0.2.12"

# Where each name is: it is imported at its first use, so that a config's typo or `--help` needn't wait for torch.
_MODULES = {
    "AudioCodec": "codes",
    "AugmentConfig": "augment.config",
    "DataConfig": "config",
    "DataError": "errors",
    "DuplexBatch": "batch",
    "DuplexDataset": "dataset",
    "EncodeOptions": "codes",
    "EncodeSummary": "codes",
    "FrameGrid": "text_channel",
    "Problem": "check",
    "SourceConfig": "config",
    "TextChannel": "text_channel",
    "TextTokenizer": "tokenizer",
    "TrainDataConfig": "config",
    "TrainLoader": "loader",
    "Turn": "batch",
    "UnreadableCutError": "errors",
    "ValidationDataConfig": "config",
    "build_text_channel": "text_channel",
    "check_shar": "check",
    "empty_batch": "batch",
    "encode_shar": "codes",
    "read_blend": "blend",
    "train_dataloader": "loader",
    "validation_dataloaders": "loader",
}

__all__ = [
    "AudioCodec",
    "AugmentConfig",
    "DataConfig",
    "DataError",
    "DuplexBatch",
    "DuplexDataset",
    "EncodeOptions",
    "EncodeSummary",
    "FrameGrid",
    "Problem",
    "SourceConfig",
    "TextChannel",
    "TextTokenizer",
    "TrainDataConfig",
    "TrainLoader",
    "Turn",
    "UnreadableCutError",
    "ValidationDataConfig",
    "build_text_channel",
    "check_shar",
    "empty_batch",
    "encode_shar",
    "read_blend",
    "train_dataloader",
    "validation_dataloaders",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 's2s_data' has no attribute {name!r}")
    return getattr(import_module(f"s2s_data.{_MODULES[name]}"), name)
