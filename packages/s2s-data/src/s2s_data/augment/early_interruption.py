"""The agent is cut short where the user barges in. Frames are of 80 ms."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from s2s_data.augment.base import Augmentation
from s2s_data.augment.checks import check_within
from s2s_data.augment.config import EarlyInterruptionConfig
from s2s_data.augment.frames import Splice, first_frame_after, last_frame_before, splice
from s2s_data.batch import TimedWords, Turn
from s2s_data.dialogue import Dialogue
from s2s_data.roles import AGENT, USER

# A word with the spaces behind it; in scripts that write none, a character (kana, Han).
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]\s*|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*")


class Chance(NamedTuple):
    """A turn of the agent that the user can interrupt."""

    agent_turn: int  # index of the agent's turn
    user_frame: int  # the frame in which the user's next turn starts
    barge_in_frames: list[int]  # where that turn may start instead


@dataclass(frozen=True)
class EarlyInterruption(Augmentation):
    """Lets the user's next turn start while the agent still speaks, which then stops.

    A turn of the agent and a frame within it are drawn. The user's next turn moves there, and everything
    behind it moves with it by as many whole frames. The agent goes on for ``overlap_frames`` and stops: its
    audio, its codes, and its text, of which the words stay that fit the share of the turn that it has spoken,
    one at least.

    A turn can be interrupted if the user's next one starts behind its end, and nobody else speaks in the
    frames that are taken out.
    """

    overlap_frames: int
    min_spoken_frames: int

    @classmethod
    def of(cls, cfg: EarlyInterruptionConfig, where: str) -> "EarlyInterruption":
        """Check ``cfg``. Raises :class:`DataError`, naming the key."""
        check_within(cfg.overlap_frames, 0, math.inf, f"{where}.overlap_frames")
        check_within(cfg.min_spoken_frames, 1, math.inf, f"{where}.min_spoken_frames")
        return cls(cfg.overlap_frames, cfg.min_spoken_frames)

    def __call__(self, dialogue: Dialogue, rng: np.random.Generator) -> Dialogue:
        """Return ``dialogue`` with one interruption, or as it is where no turn can be interrupted."""
        chances = [
            chance
            for index, turn in enumerate(dialogue.turns)
            if turn.role == AGENT and (chance := self._chance(dialogue, index)) is not None
        ]
        if not chances:
            return dialogue
        chance = chances[rng.integers(len(chances))]
        return self._interrupted(dialogue, chance, int(rng.choice(chance.barge_in_frames)))

    def _interrupted(self, dialogue: Dialogue, chance: Chance, barge_in: int) -> Dialogue:
        frame_length_s = dialogue.grid.frame_length_s
        stop = barge_in + self.overlap_frames
        moved_s = (chance.user_frame - barge_in) * frame_length_s
        before, turn = dialogue.turns[: chance.agent_turn], dialogue.turns[chance.agent_turn]
        behind = dialogue.turns[chance.agent_turn + 1 :]
        return splice(
            dialogue,
            source=Splice(barge_in, chance.user_frame),
            target=Splice(stop, chance.user_frame + self.overlap_frames),
            turns=[
                *before,
                _cut_short(turn, stop * frame_length_s),
                *(later._replace(start_s=later.start_s - moved_s) for later in behind),
            ],
        )

    def _chance(self, dialogue: Dialogue, index: int) -> Chance | None:
        """Return where turn number ``index``, one of the agent's, can be interrupted; None if nowhere."""
        turn, grid = dialogue.turns[index], dialogue.grid
        user = next((later for later in dialogue.turns[index + 1 :] if later.role == USER), None)
        if user is None:
            return None
        user_frame = last_frame_before(user.start_s, grid.frame_length_s)
        resume = user_frame + self.overlap_frames  # where the agent's channel goes on
        if not _is_free(dialogue, index, user, resume):
            return None
        earlier_ends = [first_frame_after(other.end_s, grid.frame_length_s) for other in dialogue.turns[:index]]
        first = max(grid.frame_at(turn.start_s) + self.min_spoken_frames, *earlier_ends, 0)
        end = min(grid.frame_at(turn.end_s) - self.overlap_frames, user_frame)
        frames = [
            frame
            for frame in range(first, end)
            if not turn.text or _cut_short(turn, (frame + self.overlap_frames) * grid.frame_length_s).text
        ]
        return Chance(index, user_frame, frames) if frames else None


def _is_free(dialogue: Dialogue, index: int, user: Turn, resume: int) -> bool:
    """Tell whether the user waits for the agent's turn to end, and the agent's next comes at ``resume`` or later."""
    num_frames = dialogue.grid.num_frames
    if dialogue.codes_TK is not None:
        num_frames = min(num_frames, len(dialogue.codes_TK))
    agents_next = [later for later in dialogue.turns[index + 1 :] if later.role == AGENT]
    return (
        resume <= num_frames
        and user.start_s > dialogue.turns[index].end_s - 1e-6
        and all(last_frame_before(later.start_s, dialogue.grid.frame_length_s) >= resume for later in agents_next)
    )


def _cut_short(turn: Turn, end_s: float) -> Turn:
    """Return the turn up to ``end_s``, in seconds; what it should contain may be lost."""
    words = _WORD.findall(turn.text)
    spoken_s = end_s - turn.start_s
    num_kept = math.floor(len(words) * spoken_s / turn.duration_s + 1e-6)
    text = "".join(words[:num_kept]).rstrip()
    return turn._replace(duration_s=spoken_s, text=text, value=None, words=_first(turn.words, len(text.split())))


def _first(spans: Sequence[TimedWords], num_words: int) -> tuple[TimedWords, ...]:
    """Return the first words with their times."""
    kept: list[TimedWords] = []
    for span in spans:
        words = span.text.split()[: max(num_words, 0)]
        num_words -= len(words)
        if words:
            kept.append(span._replace(text=" ".join(words)))
    return tuple(kept)
