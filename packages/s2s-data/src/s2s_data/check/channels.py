"""What can be wrong with the sound of a channel. Shapes: ``S`` samples, ``T`` frames (80 ms)."""

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from lhotse.cut import Cut

from s2s_data.audio import load_audio, offset_key
from s2s_data.batch import Turn
from s2s_data.check.turns import Found, named
from s2s_data.errors import DataError
from s2s_data.shar import RECORDING, TARGET_AUDIO

SILENCE_RMS = 1e-4  # of full scale 1.0: under -80 dB nobody speaks
LOUD_RMS = 0.01  # -40 dB: quieter than this is breath and room
LOUD_SHARE = 0.25  # 12 dB under the channel's own turns: quieter than this is noise
LOUD_S = 0.4  # shorter than this is a click or a cough
TURN_MARGIN_S = 0.3  # transcripts cut the ends of words off
FULL_SCALE = 0.999
MIN_CLIPPED = 20  # samples with both neighbours at full scale; music and shouting touch it with single ones
MAX_FRAMES_APART = 2  # the model cuts streams that differ by so many frames to the shortest

FloatArray = npt.NDArray[np.float32]


def first_line(error: Exception) -> str:
    """Return what an error says without what lhotse appends: the whole cut, over several lines."""
    return str(error).partition("\n")[0]


def duration_problems(cut: Cut, frame_length_s: float) -> Iterator[Found]:
    """Yield what is wrong with the durations of both channels; needs no audio."""
    slack_s = MAX_FRAMES_APART * frame_length_s
    channels = {RECORDING: cut.recording}
    if cut.has_custom(TARGET_AUDIO):
        channels[TARGET_AUDIO] = getattr(cut, TARGET_AUDIO)
    if any(offset_key(field) in (cut.custom or {}) for field in channels):
        return  # a converter of the blend shifted a channel: silence fills what is missing
    lengths_s = {field: recording.duration for field, recording in channels.items()}
    needed_s = cut.start + cut.duration
    if min(lengths_s.values()) < needed_s - slack_s or max(lengths_s.values()) - min(lengths_s.values()) > slack_s:
        found = ", ".join(f"its {field} {length_s:.2f} s" for field, length_s in lengths_s.items())
        yield "durations-differ", f"the cut ends at {needed_s:.2f} s, {found}"


def channel_problems(cut: Cut, field: str, turns: Sequence[Turn], frame_length_s: float) -> Iterator[Found]:
    """Yield what is wrong with the audio of a channel, ``turns`` being its speaker's."""
    rate_hz = int((cut.recording if field == RECORDING else getattr(cut, field)).sampling_rate)
    try:
        audio_S = load_audio(cut, field, rate_hz)
    except DataError as error:
        yield "unreadable-audio", first_line(error)
        return
    if num_bad := int(np.sum(~np.isfinite(audio_S))):
        yield "non-finite", f"{num_bad} samples of its {field} are NaN or infinite"
        return
    if (num_clipped := _num_clipped(audio_S)) >= MIN_CLIPPED:
        yield "clipped", f"{num_clipped} samples of its {field} lie flat at full scale"
    for turn in turns:
        if _rms(audio_S[_samples(turn, rate_hz)]) < SILENCE_RMS:
            yield "silent-turn", f"{named(turn)} is silent in {field}"
    yield from _loud_outside(audio_S, field, turns, rate_hz, frame_length_s)


def _loud_outside(
    audio_S: FloatArray, field: str, turns: Sequence[Turn], rate_hz: int, frame_length_s: float
) -> Iterator[Found]:
    hop = round(frame_length_s * rate_hz)
    num_frames = len(audio_S) // hop
    rms_T = np.sqrt(np.mean(np.square(audio_S[: num_frames * hop].reshape(num_frames, hop)), axis=1))
    times_T = (np.arange(num_frames) + 0.5) * frame_length_s
    spoken_T, near_T = np.zeros(num_frames, dtype=bool), np.zeros(num_frames, dtype=bool)
    for turn in turns:
        spoken_T |= (times_T >= turn.start_s) & (times_T < turn.end_s)
        near_T |= (times_T >= turn.start_s - TURN_MARGIN_S) & (times_T < turn.end_s + TURN_MARGIN_S)
    level = _rms(rms_T[spoken_T])
    loud_T = (rms_T > max(LOUD_RMS, LOUD_SHARE * level)) & ~near_T
    for first, last in _runs(loud_T):
        start_s, end_s = first * frame_length_s, (last + 1) * frame_length_s
        if end_s - start_s >= LOUD_S:
            yield "loud-outside", f"{field} is loud at {start_s:.2f}-{end_s:.2f} s, where no turn is"


def _runs(flags_T: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    for flag, group in groupby(enumerate(flags_T), key=lambda item: bool(item[1])):
        if flag:
            indices = [index for index, _ in group]
            yield indices[0], indices[-1]


def _num_clipped(audio_S: FloatArray) -> int:
    full_S = np.abs(audio_S) >= FULL_SCALE
    return int(np.sum(full_S[:-2] & full_S[1:-1] & full_S[2:]))


def _samples(turn: Turn, rate_hz: int) -> slice:
    return slice(max(0, round(turn.start_s * rate_hz)), max(0, round(turn.end_s * rate_hz)))


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
