"""What an augmentation is."""

from abc import ABC, abstractmethod

import numpy as np

from s2s_data.dialogue import Dialogue
from s2s_data.errors import DataError


class Augmentation(ABC):
    """Makes another dialogue of a dialogue; never changes the arrays it is given."""

    def check(self, dialogue: Dialogue) -> None:  # noqa: B027 (not abstract: most need nothing)
        """Raise :class:`DataError` if ``dialogue`` lacks what this needs.

        It is asked of every dialogue, also of those that the draw leaves alone: a run with data that doesn't
        fit its config fails at its first batch, not at some later one.
        """

    @abstractmethod
    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` changed as ``rng`` says."""


def check_has_target_audio(dialogue: Dialogue, where: str, remedy: str = "") -> None:
    """Raise :class:`DataError` if the agent's audio isn't loaded, for what stored codes can't follow."""
    if dialogue.target_R is None:
        raise DataError(
            f"{where} changes the agent's audio, but cut {dialogue.cut_id} comes as stored codes alone: set "
            f"{where.rsplit('.', 2)[0]}.load_target_audio: true, so that the model encodes the changed audio{remedy}"
        )
