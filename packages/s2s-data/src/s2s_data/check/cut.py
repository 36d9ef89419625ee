"""What can be wrong with one cut, and what is compared between cuts."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from s2s_data.batch import Turn
from s2s_data.check.channels import MAX_FRAMES_APART, channel_problems, duration_problems, first_line
from s2s_data.check.kinds import Problem
from s2s_data.check.turns import Found, turn_problems
from s2s_data.dataset import is_text_only
from s2s_data.errors import DataError, UnreadableCutError
from s2s_data.inputs import Part
from s2s_data.roles import AGENT, USER, Roles
from s2s_data.shar import RECORDING, TARGET_AUDIO, TARGET_CODES
from s2s_data.sources import CutRef
from s2s_data.stored_codes import FINGERPRINT, check_fingerprint, load_codes
from s2s_data.text_channel import FrameGrid

STORED = "stored"


@dataclass(frozen=True)
class Settings:
    """How to look at cuts."""

    roles: Roles
    frame_length_s: float
    codec_fingerprint: str | None


class CutFacts(NamedTuple):
    """What must be, or should be, the same in all cuts."""

    cut_id: str
    part: str
    source: str
    speakers: Mapping[str, int]  # turns by speaker
    traits: Mapping[str, str | None]  # by what is compared, None where the cut has no such thing


class PartFindings(NamedTuple):
    """What was found in one part of the data."""

    problems: list[Problem]
    facts: list[CutFacts]


def check_part(part: Part, settings: Settings) -> PartFindings:
    """Read a part with its audio and codes; never raises for what is wrong with the data."""
    findings = PartFindings([], [])
    try:
        for ref in part.refs():
            found = _problems(ref, settings)
            findings.problems.extend(Problem(kind, ref.cut.id, part.name, what) for kind, what in found)
            findings.facts.append(_facts(ref.cut, part))
    except DataError as error:
        findings.problems.append(Problem("broken-shard", None, part.name, first_line(error)))
    return findings


def _problems(ref: CutRef, settings: Settings) -> Iterator[Found]:
    try:
        cut = ref.load()
        turns = settings.roles.turns(cut)
        is_said = not is_text_only(cut)
    except UnreadableCutError as error:
        yield "unloadable", first_line(error)
    else:
        yield from _cut_problems(cut, turns, settings, is_said=is_said)


def _cut_problems(cut: Cut, turns: Sequence[Turn], settings: Settings, *, is_said: bool) -> Iterator[Found]:
    if not _has_source(cut):
        yield "no-source", f"it is a {type(cut).__name__} without a recording of its own"
        return
    frame_s = settings.frame_length_s
    grid = FrameGrid.of(cut.duration, frame_s, cut.sampling_rate)
    yield from turn_problems(cut, turns, settings.roles, grid)
    differ = list(duration_problems(cut, frame_s))
    yield from differ
    if not differ:  # else the loader refuses the audio, and says the same again
        said = {role: [turn for turn in turns if turn.role == role and is_said] for role in (USER, AGENT)}
        yield from channel_problems(cut, RECORDING, said[USER], frame_s)
        if cut.has_custom(TARGET_AUDIO):
            yield from channel_problems(cut, TARGET_AUDIO, said[AGENT], frame_s)
    if cut.has_custom(TARGET_CODES):
        yield from _code_problems(cut, grid, settings.codec_fingerprint)
    elif not cut.has_custom(TARGET_AUDIO):
        yield "no-target", f"no {TARGET_AUDIO} and no {TARGET_CODES}"


def _code_problems(cut: Cut, grid: FrameGrid, fingerprint: str | None) -> Iterator[Found]:
    try:
        check_fingerprint(cut, fingerprint)
    except DataError as error:
        yield "codec-differs", str(error)
    try:
        num_frames = len(load_codes(cut))
    except DataError as error:
        yield "unreadable-codes", first_line(error)
        return
    if abs(num_frames - grid.num_frames) > MAX_FRAMES_APART:
        yield "code-length", f"its {TARGET_CODES} have {num_frames} frames, the cut {grid.num_frames}"


def _has_source(cut: Cut) -> bool:
    return isinstance(cut, DataCut) and cut.has_recording


def _facts(cut: Cut, part: Part) -> CutFacts:
    custom = (cut.custom if isinstance(cut, DataCut) else None) or {}
    codes, target = custom.get(TARGET_CODES), custom.get(TARGET_AUDIO)
    traits = {
        "user's sample rate": f"{cut.recording.sampling_rate} Hz" if _has_source(cut) else None,
        "agent's sample rate": None if target is None else f"{target.sampling_rate} Hz",
        "codes": "not stored" if codes is None else STORED,
        "codebooks": None if codes is None else str(codes.shape[-1]),
        "codec": None if codes is None else str(custom.get(FINGERPRINT, "not named")),
    }
    speakers = Counter(str(supervision.speaker) for supervision in cut.supervisions)
    return CutFacts(cut.id, part.name, part.source.where, speakers, traits)
