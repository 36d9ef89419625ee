"""The augmentations of a config, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_within
from s2s_data.augment.codec import Codec
from s2s_data.augment.config import AugmentConfig
from s2s_data.augment.early_interruption import EarlyInterruption
from s2s_data.augment.noise import Noise
from s2s_data.augment.random_silence import RandomSilence
from s2s_data.augment.rir import Rir
from s2s_data.augment.role_swap import RoleSwap
from s2s_data.augment.speed import Speed
from s2s_data.augment.telephony import Telephony
from s2s_data.augment.volume import Volume
from s2s_data.dialogue import Dialogue, IntArray
from s2s_data.share import derive_seed


class Step(NamedTuple):
    """An augmentation, and for which share of the dialogues."""

    name: str
    prob: float
    augmentation: Augmentation


@dataclass(frozen=True)
class Augmentations:
    """Changes dialogues as a config says, in the order of the fields of :class:`AugmentConfig`.

    Roles first, so that what is the user's stays so; then what moves frames, while there are codes to move;
    then what the user's way to us does, in the order of that way: room, noise, line, codec.
    """

    steps: tuple[Step, ...]

    def __call__(self, dialogue: Dialogue, seed: int) -> Dialogue:
        """Return ``dialogue`` changed, the same for the same ``seed``; the object itself where nothing was.

        Each augmentation draws from ``seed`` and its own name: another one more doesn't change its draws.
        Raises :class:`DataError` if the dialogue lacks what one of them needs.
        """
        for step in self.steps:
            step.augmentation.check(dialogue)
        for step in self.steps:
            rng = np.random.default_rng(derive_seed(seed, step.name))
            if rng.random() < step.prob:
                dialogue = step.augmentation(dialogue, rng)
        return dialogue


def build_augmentations(cfg: AugmentConfig, *, silence_codes_K: IntArray | None, where: str) -> Augmentations:
    """Make the augmentations that ``cfg`` has.

    Parameters
    ----------
    cfg
        Says which, and how.
    silence_codes_K
        [K] the codec's codes of a silent frame; random silence needs them where codes are stored.
    where
        The config key of ``cfg``, such as ``data.train_ds.augment``; for messages.

    Returns
    -------
    Augmentations
        Those that are there and have a probability above 0.

    Raises
    ------
    DataError
        For a value that can't be, or files that aren't there; it names the key.

    """
    builders: dict[str, Callable[[Any, str], Augmentation]] = {
        "role_swap": RoleSwap.of,
        "early_interruption": EarlyInterruption.of,
        "random_silence": partial(RandomSilence.of, silence_codes_K=silence_codes_K),
        "speed": Speed.of,
        "volume": Volume.of,
        "rir": Rir.of,
        "noise": Noise.of,
        "telephony": Telephony.of,
        "codec": Codec.of,
    }
    steps = []
    for name in (field.name for field in fields(AugmentConfig)):
        entry = getattr(cfg, name)
        if entry is None:
            continue
        check_within(entry.prob, 0, 1, f"{where}.{name}.prob")
        steps.append(Step(name, entry.prob, builders[name](entry, f"{where}.{name}")))
    return Augmentations(tuple(step for step in steps if step.prob > 0))
