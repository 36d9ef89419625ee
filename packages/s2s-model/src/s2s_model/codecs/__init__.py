"""Neural audio codecs behind one interface: NeMo's AudioCodecModel, and Mimi, EnCodec and DAC of transformers."""

from s2s_model.codecs.base import AudioCodec, check_codec_rate
from s2s_model.codecs.context import DecodeContext, decode_context
from s2s_model.codecs.loading import load_codec

__all__ = ["AudioCodec", "DecodeContext", "check_codec_rate", "decode_context", "load_codec"]
