"""Dialogues of text alone: as those that are spoken, at the pace of a reader.

What the agent answers hangs on what was asked, not on how it sounds, and text costs no speech engine: many more
dialogues fit into the same time.
"""

import functools
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile
from lhotse import AudioSource, MonoCut, Recording

from s2s_data.dataset import TEXT_ONLY
from s2s_data.demo.corpus import FRAME_S, supervision_of
from s2s_data.talk.plan import Talk

PACES = (0.3, 1.0)  # frames that words take, as a share of about what they take when they are said
FRAMES_A_LETTER = 0.8
LAST_WORD_FRAMES = 5  # of a question, at least: it is read before what is computed from it is due, as in what is said
GAP_FRAMES = (2, 12)  # before a question
# Of the agent's turns, before the first phrase. The first has the control code "the agent starts" in place of codes,
# and the second the codes from which a decoder makes the beginning of a word: a codec's encoder hears ahead.
SILENT_FRAMES = 2


@dataclass(frozen=True)
class TextTurn:
    """A turn in frames: its spans of words, and where the first of them begins and each ends."""

    role: str
    start: int
    spans: tuple[str, ...]
    first: int  # from the turn's start, as the next
    ends: tuple[int, ...]

    @property
    def text(self) -> str:
        """All that it says."""
        return " ".join(self.spans)

    @property
    def end(self) -> int:
        """The frame behind the turn."""
        return self.start + self.ends[-1]

    @property
    def words(self) -> tuple[tuple[str, int, int], ...]:
        """Each span, and from and to which frame of the turn it takes."""
        return tuple(zip(self.spans, (self.first, *self.ends), self.ends, strict=False))

    @property
    def times(self) -> tuple[tuple[str, int, int], ...]:
        """Each span, its first frame from the turn's start, and how many it takes."""
        return tuple((span, start, end - start) for span, start, end in self.words)


def text_turns(talk: Talk, rng: random.Random, num_tokens: Callable[[str], int], *, answer_gap: int) -> list[TextTurn]:
    """Lay out a dialogue at a random pace, each span of words in no fewer frames than it has tokens.

    Args:
        talk: what is said; nobody cuts in.
        rng: for pace and gaps.
        num_tokens: of a span.
        answer_gap: in frames, as `TalkConfig` has it.
    """
    pace = rng.uniform(*PACES)
    turns: list[TextTurn] = []
    clock = 0

    def turn(role: str, start: int, spans: Sequence[str], last_frames: int) -> TextTurn:
        first = SILENT_FRAMES if role == "agent" else 1
        ends, at = [], first
        for i, span in enumerate(spans):
            length = max(round(len(span) * FRAMES_A_LETTER * pace), num_tokens(span))
            at += max(length, last_frames) if i == len(spans) - 1 else length
            ends.append(at)
        return TextTurn(role, start, tuple(spans), first, tuple(ends))

    for exchange in talk.exchanges:
        clock += rng.randint(*GAP_FRAMES)
        question = turn("user", clock, exchange.question.split(), LAST_WORD_FRAMES)
        answer = turn("agent", question.end + answer_gap, exchange.phrases, 1)
        turns += [question, answer]
        clock = answer.end
    return turns


def most_tokens(span: str) -> int:
    """How many tokens words may have, or a few more: one for each digit, else for two letters, and one beside."""
    return sum(1 + (len(word) if word[0].isdigit() else -(-len(word) // 2)) for word in span.split())


def text_cut(name: str, turns: Sequence[TextTurn], num_frames: int, rate_hz: int, agent_rate_hz: int) -> MonoCut:
    """A cut of `text_only` dialogue: both channels silent, and the turns with the times of their words."""
    recording = _silence(name, num_frames, rate_hz)
    cut = MonoCut(id=name, start=0.0, duration=recording.duration, channel=0, recording=recording)
    cut.supervisions = [
        supervision_of(
            f"{name}-{i}", name, role=turn.role, text=turn.text, frames=(turn.start, turn.end), words=turn.words
        )
        for i, turn in enumerate(turns)
    ]
    cut.custom = {TEXT_ONLY: True, "target_audio": _silence(f"{name}-agent", num_frames, agent_rate_hz)}
    return cut


def _silence(name: str, num_frames: int, rate_hz: int) -> Recording:
    num_samples = round(num_frames * FRAME_S * rate_hz)
    source = AudioSource(type="memory", channels=[0], source=_silent_file(num_samples, rate_hz))
    return Recording(name, [source], rate_hz, num_samples, num_samples / rate_hz)


@functools.lru_cache(maxsize=1024)  # as many frames as dialogues have, at two rates
def _silent_file(num_samples: int, rate_hz: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(num_samples, dtype=np.int16), rate_hz, format="FLAC", subtype="PCM_16")
    return file.getvalue()
