"""Each channel louder or softer."""

from dataclasses import dataclass, replace

import numpy as np

from s2s_data.augment.base import Augmentation, check_has_target_audio
from s2s_data.augment.checks import check_range
from s2s_data.augment.config import VolumeConfig
from s2s_data.dialogue import Dialogue, FloatArray


@dataclass(frozen=True)
class Volume(Augmentation):
    """Gives each channel a gain of its own; nothing is clipped.

    Stored codes are of the agent's original volume: where the agent's may change they are left out, and the
    model encodes the audio.
    """

    user_gain_db: tuple[float, float]
    agent_gain_db: tuple[float, float]
    where: str

    @classmethod
    def of(cls, cfg: VolumeConfig, where: str) -> "Volume":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        check_range(cfg.user_gain_db_min, cfg.user_gain_db_max, "user_gain_db", where)
        check_range(cfg.agent_gain_db_min, cfg.agent_gain_db_max, "agent_gain_db", where)
        user = (cfg.user_gain_db_min, cfg.user_gain_db_max)
        return cls(user, (cfg.agent_gain_db_min, cfg.agent_gain_db_max), where)

    def check(self, dialogue: Dialogue) -> None:
        """Raise :class:`DataError` if the agent's gain may change and its audio isn't loaded."""
        if self.agent_gain_db != (0, 0):
            check_has_target_audio(dialogue, self.where, "; or agent_gain_db_min and agent_gain_db_max to 0")

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with other volumes."""
        user_gain_db, agent_gain_db = rng.uniform(*self.user_gain_db), rng.uniform(*self.agent_gain_db)
        louder = replace(dialogue, source_S=_amplified(dialogue.source_S, user_gain_db))
        if self.agent_gain_db == (0, 0):
            return louder
        assert dialogue.target_R is not None
        return replace(louder, target_R=_amplified(dialogue.target_R, agent_gain_db), codes_TK=None)


def _amplified(audio_S: FloatArray, gain_db: float) -> FloatArray:
    return audio_S * float(10 ** (gain_db / 20))
