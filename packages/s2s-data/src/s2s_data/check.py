"""Looking through a Shar for what training would suffer from."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lhotse.cut import Cut

from s2s_data.audio import load_audio
from s2s_data.batch import Turn
from s2s_data.errors import DataError
from s2s_data.roles import AGENT, USER, Roles
from s2s_data.shar import RECORDING, TARGET_AUDIO, TARGET_CODES, find_shards
from s2s_data.stored_codes import load_codes
from s2s_data.text_channel import FrameGrid

SILENCE_RMS = 1e-4  # of full scale 1.0: under -80 dB nobody speaks
MAX_FRAMES_APART = 2  # the model cuts streams that differ by so many frames to the shortest


class Problem(NamedTuple):
    """Something wrong with one cut, or with a whole shard (no cut id)."""

    cut_id: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.cut_id or '(shard)'}: {self.what}"


def check_shar(folder: str, roles: Roles, frame_length_s: float = 0.08) -> tuple[int, list[Problem]]:
    """Read every cut of a Shar with its audio.

    Parameters
    ----------
    folder
        The Shar.
    roles
        Whose supervisions are whose.
    frame_length_s
        The length of a frame.

    Returns
    -------
    tuple[int, list[Problem]]
        How many cuts were read, and what is wrong with them.

    Raises
    ------
    DataError
        If the folder is no Shar.

    """
    num_cuts, problems = 0, []
    for shard in find_shards(folder, "check"):
        try:
            for cut in shard.cuts():
                num_cuts += 1
                problems += [Problem(cut.id, what) for what in _problems(cut, roles, frame_length_s)]
        except DataError as error:
            problems.append(Problem(None, str(error)))
    return num_cuts, problems


def _problems(cut: Cut, roles: Roles, frame_length_s: float) -> Iterator[str]:
    turns = roles.turns(cut)
    grid = FrameGrid.of(cut.duration, frame_length_s, cut.sampling_rate)
    yield from _speaker_problems(cut, roles, turns)
    for role in (USER, AGENT):
        yield from _turn_problems([turn for turn in turns if turn.role == role], cut, grid)
    yield from _channel_problems(cut, RECORDING, [turn for turn in turns if turn.role == USER])
    if cut.has_custom(TARGET_AUDIO):
        yield from _channel_problems(cut, TARGET_AUDIO, [turn for turn in turns if turn.role == AGENT])
    elif not cut.has_custom(TARGET_CODES):
        yield f"no {TARGET_AUDIO} and no {TARGET_CODES}"
    if cut.has_custom(TARGET_CODES):
        yield from _code_problems(cut, grid)


def _speaker_problems(cut: Cut, roles: Roles, turns: list[Turn]) -> Iterator[str]:
    for speaker in sorted({str(supervision.speaker) for supervision in cut.supervisions}):
        if speaker not in roles.input_roles | roles.output_roles:
            yield f"speaker {speaker!r} is in neither role: its turns are left out"
    if not any(turn.role == AGENT for turn in turns):
        yield "the agent has no turn"


def _turn_problems(turns: list[Turn], cut: Cut, grid: FrameGrid) -> Iterator[str]:
    for turn in turns:
        name = _named(turn)
        if turn.start_s < 0 or turn.end_s > cut.duration + grid.frame_length_s:
            yield f"{name} lies outside the cut's {cut.duration:.2f} s"
        if not turn.text:
            yield f"{name} has no text"
        num_frames = grid.frame_at(turn.end_s) - grid.frame_at(turn.start_s)
        if (num_words := len(turn.text.split())) >= max(1, num_frames):
            yield f"{name} has {num_words} words for {num_frames} frames: its text will be cut"
    for turn, following in pairwise(turns):
        if following.start_s < turn.end_s - grid.frame_length_s:
            yield f"{_named(turn)} overlaps the next turn of the same side, at {following.start_s:.2f} s"


def _channel_problems(cut: Cut, field: str, turns: list[Turn]) -> Iterator[str]:
    recording = cut.recording if field == RECORDING else getattr(cut, field)
    if abs(recording.duration - cut.duration) > MAX_FRAMES_APART * 0.08:
        yield f"its {field} lasts {recording.duration:.2f} s, the cut {cut.duration:.2f} s"
        return
    try:
        audio_S = load_audio(cut, field, recording.sampling_rate)
    except DataError as error:
        yield str(error)
        return
    for turn in turns:
        if _rms(audio_S, turn, recording.sampling_rate) < SILENCE_RMS:
            yield f"{_named(turn)} is silent in {field}"


def _code_problems(cut: Cut, grid: FrameGrid) -> Iterator[str]:
    try:
        num_frames = len(load_codes(cut))
    except DataError as error:
        yield str(error)
        return
    if abs(num_frames - grid.num_frames) > MAX_FRAMES_APART:
        yield f"its {TARGET_CODES} have {num_frames} frames, the cut {grid.num_frames}"


def _rms(audio_S: npt.NDArray[np.float32], turn: Turn, sample_rate_hz: int) -> float:
    first = max(0, round(turn.start_s * sample_rate_hz))
    spoken = audio_S[first : round(turn.end_s * sample_rate_hz)]
    return float(np.sqrt(np.mean(np.square(spoken)))) if len(spoken) else 0.0


def _named(turn: Turn) -> str:
    return f"{turn.role} turn at {turn.start_s:.2f}-{turn.end_s:.2f} s"
