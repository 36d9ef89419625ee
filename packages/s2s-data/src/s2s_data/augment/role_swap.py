"""The user and the agent change places."""

from dataclasses import dataclass, replace

import numpy as np

from s2s_data.augment.base import Augmentation, check_has_target_audio
from s2s_data.augment.config import RoleSwapConfig
from s2s_data.augment.frames import fitted
from s2s_data.augment.resampling import resampled
from s2s_data.dialogue import Dialogue
from s2s_data.roles import AGENT, USER


@dataclass(frozen=True)
class RoleSwap(Augmentation):
    """Swaps the channels, each resampled to the other's rate, and the roles of the turns.

    Stored codes are of the speaker who now is the user, and none are stored of the new agent: they are left
    out, and the model encodes the audio.
    """

    where: str

    @classmethod
    def of(cls, cfg: RoleSwapConfig, where: str) -> "RoleSwap":
        """Make it; ``cfg`` has no value to check but its probability."""
        return cls(where)

    def check(self, dialogue: Dialogue) -> None:
        """Raise :class:`DataError` if the agent's audio isn't loaded: it would be the user's."""
        check_has_target_audio(dialogue, self.where)

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with roles swapped; ``rng`` isn't used."""
        assert dialogue.target_R is not None
        source_rate_hz, target_rate_hz = dialogue.source_rate_hz, dialogue.target_rate_hz
        source_S = resampled(dialogue.target_R, target_rate_hz, source_rate_hz)
        target_R = resampled(dialogue.source_S, source_rate_hz, target_rate_hz)
        return replace(
            dialogue,
            turns=tuple(turn._replace(role=AGENT if turn.role == USER else USER) for turn in dialogue.turns),
            source_S=fitted(source_S, len(dialogue.source_S)),
            target_R=fitted(target_R, len(dialogue.target_R)),
            codes_TK=None,
        )
