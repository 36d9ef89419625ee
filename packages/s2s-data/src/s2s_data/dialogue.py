"""One dialogue, loaded: what lies between a lhotse cut and the rows of a batch.

Shapes: ``S`` samples of user audio, ``R`` samples of agent audio, ``T`` frames (80 ms), ``K`` codebooks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from s2s_data.batch import Turn
from s2s_data.text_channel import FrameGrid

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dialogue:
    """Both channels of a dialogue and its turns. All of them start at 0 and last ``duration_s``."""

    cut_id: str
    duration_s: float
    grid: FrameGrid  # the frames of the text channels
    turns: tuple[Turn, ...]  # by start
    source_S: FloatArray  # at source_rate_hz
    source_rate_hz: int
    target_R: FloatArray | None  # at target_rate_hz; None where codes are stored and audio wasn't asked for
    target_rate_hz: int
    codes_TK: IntArray | None  # None where no codes are stored
    text_only: bool = False  # its sound says nothing
