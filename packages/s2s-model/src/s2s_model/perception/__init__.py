"""The encoder of the user's audio: NeMo's and Hugging Face's behind one interface, whole or streaming."""

from s2s_model.perception.base import Perception
from s2s_model.perception.build import build_perception
from s2s_model.perception.streaming import PerceptionStream

__all__ = ["Perception", "PerceptionStream", "build_perception"]
