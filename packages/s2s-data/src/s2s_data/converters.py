"""What turns stored cuts into dialogues: role swap, overlap data, single-turn speech QA.

A converter is called with a cut and returns a changed copy, or None to leave the cut out. It is called twice for
each cut, with the cut's manifest alone (planning) and with its data attached (loading), and must give the same
both times: so it changes manifest fields and loads nothing. Its dataclass fields are the keys of a blend's entry.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.array import Array, TemporalArray
from lhotse.cut import Cut, MultiCut
from lhotse.utils import fastcopy

from s2s_data.audio import offset_key, place_of
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.shar import RECORDING, TARGET_AUDIO, TARGET_CODES
from s2s_data.stored_codes import FINGERPRINT

AGENT_ROLES = ("agent", "Agent", "Assistant", "assistant")
USER_ROLES = ("user", "User")


@dataclass(frozen=True)
class ReverseRole:
    """``s2s_duplex_reverse_role``: the agent becomes the user and the user the agent.

    The recordings change places, and so do the speakers of the turns; other speakers stay. Stored codes are of
    the wrong side then, and are taken off. Roles are compared without regard to case, as in NeMo.
    """

    agent_roles: tuple[str, ...] = AGENT_ROLES
    user_roles: tuple[str, ...] = USER_ROLES
    target_agent_name: str = "agent"  # the new name of the users
    target_user_name: str = "user"  # the new name of the agents

    keeps_codes: ClassVar[bool] = False  # stored codes don't fit the converted dialogue

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for wrong values."""
        _check_names(self)
        if both := _lower(self.agent_roles) & _lower(self.user_roles):
            raise DataError(f"{sorted(both)} is in agent_roles and in user_roles: a speaker has one role")

    def __call__(self, cut: Cut) -> Cut:
        """Return ``cut`` with its sides swapped.

        Raises :class:`UnreadableCutError` if it has no ``target_audio``, or its recording has several channels.
        """
        custom = _custom(cut)
        target_audio = custom.get(TARGET_AUDIO)
        if not isinstance(target_audio, Recording):
            raise UnreadableCutError(f"{place_of(cut)} has no {TARGET_AUDIO}: swapping roles needs the agent's audio")
        for field, recording in ((RECORDING, cut.recording), (TARGET_AUDIO, target_audio)):
            if recording.num_channels != 1:
                raise UnreadableCutError(
                    f"{place_of(cut)}: its {field} has {recording.num_channels} channels, and which of them is the "
                    "speaker's gets lost where roles are swapped: store it with one channel"
                )
        swapped = {TARGET_AUDIO: cut.recording}
        for field, other in ((RECORDING, TARGET_AUDIO), (TARGET_AUDIO, RECORDING)):
            if offset_key(other) in custom:
                swapped[offset_key(field)] = custom[offset_key(other)]
        left_out = (TARGET_CODES, FINGERPRINT, offset_key(RECORDING), offset_key(TARGET_AUDIO))
        kept = {key: value for key, value in custom.items() if key not in left_out}
        (channel,) = target_audio.channel_ids
        return fastcopy(
            cut,
            recording=target_audio,
            channel=channel if isinstance(cut, MonoCut) else [channel],
            supervisions=[fastcopy(turn, speaker=self._swapped(turn.speaker)) for turn in cut.supervisions],
            custom={**kept, **swapped},
        )

    def _swapped(self, speaker: str | None) -> str | None:
        if speaker is not None and speaker.lower() in _lower(self.user_roles):
            return self.target_agent_name
        if speaker is not None and speaker.lower() in _lower(self.agent_roles):
            return self.target_user_name
        return speaker


@dataclass(frozen=True)
class OverlapToDuplex:
    """``s2s_duplex_overlap_as_s2s_duplex``: turns from a cut's ``agent_segments`` and ``user_segments``.

    Each is a list of ``{start, end, text}``, in seconds. They become the cut's only supervisions, of the speakers
    ``agent`` and ``user``, by their start.
    """

    move_agent_text_back_by: float = 0.0  # the agent's turns start so much earlier, seconds; their ends stay
    filter_samples_starting_with_agent: bool = False  # leave out cuts that the agent begins, or without any turn
    agent_roles: tuple[str, ...] = ("agent", "Assistant", "assistant")  # what the filter takes for the agent

    keeps_codes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for wrong values."""
        _check_names(self)
        _check_seconds(self, "move_agent_text_back_by")
        if not isinstance(self.filter_samples_starting_with_agent, bool):
            raise DataError(
                f"filter_samples_starting_with_agent is {self.filter_samples_starting_with_agent!r}, but must be "
                "true or false"
            )

    def __call__(self, cut: Cut) -> Cut | None:
        """Return ``cut`` with its segments as turns; None if the filter leaves it out.

        Raises :class:`UnreadableCutError` if a list of segments is missing or wrong.
        """
        turns = self._turns(cut, "agent", self.move_agent_text_back_by) + self._turns(cut, "user", 0.0)
        turns.sort(key=lambda turn: turn.start)
        begins = turns[0].speaker if turns else None
        if self.filter_samples_starting_with_agent and (begins is None or begins in self.agent_roles):
            return None
        return fastcopy(cut, supervisions=turns)

    def _turns(self, cut: Cut, speaker: str, move_back_s: float) -> list[SupervisionSegment]:
        field = f"{speaker}_segments"
        segments: Any = _custom(cut).get(field)
        try:
            spans = [(float(item["start"]), float(item["end"]), str(item["text"])) for item in segments]
        except (TypeError, KeyError, ValueError) as error:
            raise UnreadableCutError(
                f"{place_of(cut)}: its {field} must be a list of {{start, end, text}}, but is {segments!r:.100}"
            ) from error
        if backward := [span for span in spans if span[1] < span[0]]:
            raise UnreadableCutError(f"{place_of(cut)}: in its {field} {backward[0]!r:.100} ends before it starts")
        return [
            _turn(cut, f"{speaker}-{number}", max(0.0, start_s - move_back_s), end_s, text, speaker)
            for number, (start_s, end_s, text) in enumerate(spans)
        ]


@dataclass(frozen=True)
class QuestionAnswerToDuplex:
    """``sqa_as_s2s_duplex``: a spoken question (``recording``) and its spoken answer (``target_audio``), in turn.

    The answer is laid behind the question, each beginning on a frame, and the other side is silent meanwhile. A
    side's turns are its supervisions, timed from the start of its own audio; where it has none, a single turn
    over all its audio with the text of the cut's custom field ``question`` or ``answer``. Stored codes are of the
    answer alone, and are taken off.
    """

    lead_in_s: float = 0.0  # silence before the question, at least
    gap_s: float = 0.32  # silence between the end of the question's last turn and the answer, at least
    tail_s: float = 0.08  # silence after both, at least: one frame, so that the end of the answer is learnt
    frame_length: float = 0.08  # seconds
    agent_roles: tuple[str, ...] = AGENT_ROLES  # speakers of the answer; all others ask
    target_agent_name: str = "agent"
    target_user_name: str = "user"

    keeps_codes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for wrong values."""
        _check_names(self)
        for key in ("lead_in_s", "gap_s", "tail_s", "frame_length"):
            _check_seconds(self, key)
        if self.frame_length == 0:
            raise DataError("frame_length is 0, but must be above 0 seconds")

    def __call__(self, cut: Cut) -> Cut:
        """Return the dialogue, as long as both audios one after the other.

        Raises :class:`UnreadableCutError` if the answer's audio or a side's text is missing, or the cut is a part of a
        longer recording.
        """
        custom = _custom(cut)
        answer = custom.get(TARGET_AUDIO)
        if not isinstance(answer, Recording):
            raise UnreadableCutError(f"{place_of(cut)} has no {TARGET_AUDIO}: the spoken answer is missing")
        if cut.start > 0 or cut.recording.duration - cut.duration > self.frame_length:
            raise UnreadableCutError(
                f"{place_of(cut)} is a part of a longer recording, so where the question's audio stops gets lost: "
                "store the cut with audio of its own, as cut.save_audio does"
            )
        asked = [turn for turn in cut.supervisions if (turn.speaker or "").lower() not in _lower(self.agent_roles)]
        answered = [turn for turn in cut.supervisions if (turn.speaker or "").lower() in _lower(self.agent_roles)]
        question_s = self._whole_frames(self.lead_in_s)
        asked = self._side(cut, asked, "question", cut.duration, question_s, self.target_user_name)
        answer_s = self._whole_frames(max(turn.end for turn in asked) + self.gap_s)
        answered = self._side(cut, answered, "answer", answer.duration, answer_s, self.target_agent_name)
        ends_s = [question_s + cut.duration, answer_s + answer.duration, *(turn.end for turn in asked + answered)]
        kept = {key: value for key, value in custom.items() if key not in (TARGET_CODES, FINGERPRINT)}
        return fastcopy(
            cut,
            duration=self._whole_frames(max(ends_s) + self.tail_s),
            supervisions=asked + answered,
            custom={**kept, offset_key(RECORDING): question_s, offset_key(TARGET_AUDIO): answer_s},
        )

    def _whole_frames(self, duration_s: float) -> float:
        """Round up, in seconds; what a float's last digits exceed a frame by doesn't count."""
        return round(math.ceil(round(duration_s / self.frame_length, 6)) * self.frame_length, 9)

    def _side(
        self, cut: Cut, turns: Sequence[SupervisionSegment], field: str, audio_s: float, offset_s: float, speaker: str
    ) -> list[SupervisionSegment]:
        """Return a side's turns, ``offset_s`` later; the whole audio as one turn where there are none."""
        if turns:
            return [_moved(turn, offset_s, speaker) for turn in turns]
        text = _custom(cut).get(field)
        if not isinstance(text, str):
            raise UnreadableCutError(
                f"{place_of(cut)} has no turn of the {field} and no text in a custom field {field}: give it one"
            )
        return [_turn(cut, field, offset_s, offset_s + audio_s, text, speaker)]


EntryConverter = ReverseRole | OverlapToDuplex | QuestionAnswerToDuplex

# The entry types that convert. All but the last are NeMo's.
CONVERTERS: Mapping[str, type[EntryConverter]] = {
    "s2s_duplex_reverse_role": ReverseRole,
    "s2s_duplex_overlap_as_s2s_duplex": OverlapToDuplex,
    "sqa_as_s2s_duplex": QuestionAnswerToDuplex,
}


@dataclass(frozen=True)
class FilesBesideManifest:
    """Relative paths that lead nowhere from where we run are meant from the manifest's folder, as in NeMo."""

    folder: str

    def __call__(self, cut: Cut) -> Cut:
        """Return ``cut`` with the paths that lead to its files."""
        if not isinstance(cut, MonoCut | MultiCut):
            return cut
        custom = {key: self._found(value) for key, value in (cut.custom or {}).items()}
        return fastcopy(cut, recording=self._found(cut.recording), custom=custom)

    def _found(self, value: Any) -> Any:
        if isinstance(value, Recording):
            return fastcopy(value, sources=[self._found_source(source) for source in value.sources])
        if isinstance(value, TemporalArray):
            return fastcopy(value, array=self._found(value.array))
        if isinstance(value, Array) and value.storage_path:
            return fastcopy(value, storage_path=self._found_path(value.storage_path))
        return value

    def _found_source(self, source: Any) -> Any:
        return fastcopy(source, source=self._found_path(source.source)) if source.type == "file" else source

    def _found_path(self, path: str) -> str:
        beside = Path(self.folder, path)  # an absolute path stays
        return str(beside) if not Path(path).exists() and beside.exists() else path


def _custom(cut: Cut) -> dict[str, Any]:
    """Return the custom fields; raises :class:`UnreadableCutError` for a cut that can't have any."""
    if not isinstance(cut, MonoCut | MultiCut) or cut.recording is None:
        raise UnreadableCutError(
            f"{place_of(cut)} is a {type(cut).__name__} that can't be converted: a MonoCut with a recording can"
        )
    return cut.custom or {}


def _turn(cut: Cut, name: str, start_s: float, end_s: float, text: str, speaker: str) -> SupervisionSegment:
    start_s = round(start_s, 9)  # 1.2 - 0.4 is 0.7999999999999999
    return SupervisionSegment(
        f"{cut.id}-{name}", cut.id, start_s, duration=round(end_s - start_s, 9), text=text, speaker=speaker
    )


def _moved(turn: SupervisionSegment, offset_s: float, speaker: str) -> SupervisionSegment:
    """Return the turn ``offset_s`` later; lhotse's own ``with_offset`` leaves alignments where they are."""
    alignment = {kind: [item.with_offset(offset_s) for item in items] for kind, items in (turn.alignment or {}).items()}
    return fastcopy(turn, start=turn.start + offset_s, speaker=speaker, alignment=alignment or None)


def _lower(names: Sequence[str]) -> set[str]:
    return {name.lower() for name in names}


def _check_names(converter: Any) -> None:
    """Raise :class:`DataError` unless roles are lists of names, and names are text."""
    for key, value in vars(converter).items():
        if key.endswith("_roles") and not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            raise DataError(f"{key} is {value!r}, but must be a list of speaker names, as in [agent]")
        if key.endswith("_name") and not isinstance(value, str):
            raise DataError(f"{key} is {value!r}, but must be a speaker's name")


def _check_seconds(converter: Any, key: str) -> None:
    value = getattr(converter, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"{key} is {value!r}, but must be seconds, 0 or more")
