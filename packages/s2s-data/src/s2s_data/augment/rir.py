"""The user in a room. Shapes: ``S`` samples of user audio."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from s2s_data.augment.base import Augmentation
from s2s_data.augment.clips import Clips
from s2s_data.augment.config import RirConfig
from s2s_data.dialogue import Dialogue, FloatArray
from s2s_data.errors import UnreadableCutError


@dataclass(frozen=True)
class Rir(Augmentation):
    """Convolves the user's channel with a room impulse response; the agent's is left as it is.

    The channel keeps its length, its energy (the sum of its squared samples), and its times: the response's
    direct path, which is its largest sample, gets no delay.
    """

    clips: Clips

    @classmethod
    def of(cls, cfg: RirConfig, where: str) -> "Rir":
        """Find the files of ``cfg``. Raises :class:`DataError`, naming the key."""
        return cls(Clips.find(cfg.files, f"{where}.files"))

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with the user in a room.

        Raises :class:`UnreadableCutError` if the response can't be read or is silent.
        """
        clip = self.clips.draw(rng)
        response_S = clip.load(dialogue.source_rate_hz)
        direct = int(np.argmax(np.abs(response_S)))
        if response_S[direct] == 0:
            raise UnreadableCutError(f"{clip.where}: the room impulse response {clip.cut.id} is silent: take it out")
        dry_S = dialogue.source_S
        wet_S: FloatArray = convolved(torch.tensor(dry_S), torch.tensor(response_S)).numpy()
        wet_S = wet_S[direct : direct + len(dry_S)]
        dry_energy, wet_energy = _energy(dry_S), _energy(wet_S)
        if dry_energy == 0 or wet_energy == 0:
            return dialogue
        return replace(dialogue, source_S=wet_S * float(np.sqrt(dry_energy / wet_energy)))


def convolved(dry_S: Tensor, response_R: Tensor) -> Tensor:
    """The convolution of both, [S + R - 1], piece by piece (overlap-add): one transform of all takes longer.

    Args:
        dry_S: audio.
        response_R: shorter, as a rule.
    """
    S, R = len(dry_S), len(response_R)
    size = 4 * 2 ** (R - 1).bit_length()  # of a transform, its result's tail included
    step = size - R + 1
    pieces = -(-S // step)
    dry_PX = torch.nn.functional.pad(dry_S, (0, pieces * step - S)).view(pieces, step)
    wet_PX = torch.fft.irfft(torch.fft.rfft(dry_PX, size) * torch.fft.rfft(response_R, size), size)
    heads_PX, tails_PX = wet_PX.split([step, R - 1], dim=1)
    wet_S = torch.nn.functional.pad(heads_PX.reshape(-1), (0, step))
    wet_S[step:].view(pieces, step)[:, : R - 1] += tails_PX
    return wet_S[: S + R - 1]


def _energy(audio_S: FloatArray) -> float:
    return float(np.sum(np.square(audio_S, dtype=np.float64)))
