"""What the model asks of an encoder, and what all encoders share.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `H` hidden.
"""

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from s2s_parallel.recompute import recompute_in_backward

if TYPE_CHECKING:
    from s2s_model.perception.streaming import PerceptionStream

FRAME_TOLERANCE_S = 1e-6


class Perception(nn.Module, ABC):
    """Audio to one vector a frame, as wide as the LLM.

    Attributes:
        sample_rate: Hz of the audio it wants.
        frame_length_s: seconds of a frame.
        output_dim: width of a vector (H), the LLM's.
    """

    def __init__(self, section: dict[str, Any], *, sample_rate: int, frame_length_s: float) -> None:
        super().__init__()
        self.output_dim: int = section["output_dim"]
        self.sample_rate = sample_rate
        self.frame_length_s = frame_length_s
        self._section = section

    @abstractmethod
    def forward(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor]:
        """Encode float32 audio [B, S] of `input_signal_length` [B] samples.

        Returns:
            a vector a frame [B, T, H] in the weights' dtype, and the valid frames [B]. What lies beyond an example's
            length changes nothing of it.
        """

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The repeated layers of encoder and adapter, in the order in which they run."""

    @abstractmethod
    def stream(self, batch_size: int, compile: bool = False) -> "PerceptionStream":
        """`batch_size` live sessions that hear frame by frame what `forward` hears at once; `compile` its layers.

        Raises:
            ValueError: this encoder can't give the same vectors frame by frame; the message says why.
        """

    def resolved_config(self) -> dict[str, Any]:
        """The whole `model.perception` section: it builds the same module again, with no pretrained ASR."""
        return deepcopy(self._section)

    def activation_checkpointing(self, enabled: bool) -> None:
        """Keep each layer's input only and compute the layer again in backward: less memory, a third more time."""
        for module in [*self.subsampling(), *self.blocks()]:
            recompute_in_backward(module, enabled)

    def subsampling(self) -> list[nn.Module]:
        """What comes before the layers and takes memory and time as they do."""
        return []


def check_frame_length(actual_s: float, frame_length_s: float) -> None:
    """Refuse an encoder whose frames aren't `frame_length_s` long.

    Raises:
        ValueError: they aren't; the message quotes both.
    """
    if abs(actual_s - frame_length_s) > FRAME_TOLERANCE_S:
        raise ValueError(
            f"model.perception gives a vector every {actual_s * 1000:g} ms, data.frame_length asks for "
            f"{frame_length_s * 1000:g} ms: change the encoder's or the adapter's subsampling_factor"
        )
