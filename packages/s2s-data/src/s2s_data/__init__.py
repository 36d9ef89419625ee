"""Duplex conversations as lhotse cuts, in tensors."""

from s2s_data.batch import DuplexBatch, Turn, empty_batch
from s2s_data.blend import read_blend
from s2s_data.check import Problem, check_shar
from s2s_data.codes import AudioCodec, encode_shar
from s2s_data.config import DataConfig, SourceConfig, TrainDataConfig, ValidationDataConfig
from s2s_data.dataset import DuplexDataset
from s2s_data.errors import DataError
from s2s_data.loader import train_dataloader, validation_dataloaders
from s2s_data.text_channel import FrameGrid, TextChannel, build_text_channel
from s2s_data.tokenizer import TextTokenizer

__version__ = "0.1.0"

__all__ = [
    "AudioCodec",
    "DataConfig",
    "DataError",
    "DuplexBatch",
    "DuplexDataset",
    "FrameGrid",
    "Problem",
    "SourceConfig",
    "TextChannel",
    "TextTokenizer",
    "TrainDataConfig",
    "Turn",
    "ValidationDataConfig",
    "build_text_channel",
    "check_shar",
    "empty_batch",
    "encode_shar",
    "read_blend",
    "train_dataloader",
    "validation_dataloaders",
]
