"""Loading and collating one channel's audio. Shapes: ``C`` channels, ``S`` samples, ``B`` batch."""

import io
from collections.abc import Iterable, Sequence

import miniaudio
import numpy as np
import numpy.typing as npt
import soundfile
import torch
from lhotse import MonoCut, Recording
from lhotse.cut import Cut, MultiCut
from lhotse.utils import compute_num_samples
from torch import Tensor
from torch.utils.data import get_worker_info

from s2s_data.errors import UnreadableCutError
from s2s_data.shar import RECORDING
from s2s_data.shared_memory import empty_shared

FloatArray = npt.NDArray[np.float32]

# A recording may be this much shorter than its cut: codecs and resampling round to frames of their own.
MAX_MISSING_S = 0.16
_INT16_SCALE = np.float32(1 / 32768)


def place_of(cut: Cut) -> str:
    """Name a cut and where it comes from, for messages."""
    origin = (cut.custom or {}).get("shard_origin") if hasattr(cut, "custom") else None
    return f"cut {cut.id} of {origin}" if origin else f"cut {cut.id}"


def offset_key(field: str) -> str:
    """Return the custom field that says how many seconds into the cut a channel's audio starts."""
    return f"{field}_offset_s"


def load_audio(cut: Cut, field: str, sample_rate_hz: int, out: FloatArray | None = None) -> FloatArray:
    """Load a channel of ``cut`` at ``sample_rate_hz``.

    Parameters
    ----------
    cut
        The dialogue. A custom ``recording_offset_s`` or ``target_audio_offset_s`` places the channel's audio so
        many seconds into it, with silence around.
    field
        ``recording`` or the name of a custom recording.
    sample_rate_hz
        The wanted rate: audio of another one is resampled.
    out
        [S] or longer: where to decode to, if that can be done without a copy.

    Returns
    -------
    ndarray
        [S] float32, S being the cut's duration; channels are averaged, a few missing samples are silence. It may be
        the start of ``out``.

    Raises
    ------
    UnreadableCutError
        If the audio can't be read, or is shorter than the cut by more than ``MAX_MISSING_S``.

    """
    offset_s = (cut.custom or {}).get(offset_key(field)) if hasattr(cut, "custom") else None
    if offset_s is not None and not 0 <= offset_s < cut.duration:
        raise UnreadableCutError(
            f"{place_of(cut)}: its {offset_key(field)} is {offset_s}, but must be from 0 to its {cut.duration:.2f} s"
        )
    try:
        samples_S = _load(cut, field, sample_rate_hz, offset_s or 0.0, out if offset_s is None else None)
    except Exception as error:  # lhotse raises what its audio backends do, of any kind
        why = str(error).partition("\n")[0]  # lhotse adds lines with the whole recording
        raise UnreadableCutError(f"{place_of(cut)}: can't read its {field}: {type(error).__name__}: {why}") from error
    num_samples = compute_num_samples(cut.duration, sample_rate_hz)
    if len(samples_S) == num_samples and offset_s is None:
        return samples_S
    if offset_s is None and num_samples - len(samples_S) > MAX_MISSING_S * sample_rate_hz:
        raise UnreadableCutError(
            f"{place_of(cut)}: its {field} has {len(samples_S) / sample_rate_hz:.2f} s but the cut "
            f"{cut.duration:.2f} s: both channels must start at 0 and have the cut's duration"
        )
    audio_S = np.zeros(num_samples, dtype=np.float32)
    start = round((offset_s or 0.0) * sample_rate_hz)
    audio_S[start : start + len(samples_S)] = samples_S[: num_samples - start]
    return audio_S


def empty_rows(num_samples: Sequence[int]) -> Tensor:
    """Return [B, S] float32 that isn't filled, in shared memory where a worker process makes it.

    What a worker decodes into it reaches the main process without another copy.
    """
    shape = (len(num_samples), max(num_samples))
    return torch.empty(shape) if get_worker_info() is None else empty_shared(shape)


def pad_rows(rows: Sequence[FloatArray], into: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ([B, S] float32 padded with 0, [B] int64), in ``into`` where it has that shape."""
    lens = [len(row) for row in rows]
    if into is None or into.shape != (len(rows), max(lens)):
        into = empty_rows(lens)
    # numpy, because torch would wake its threads for each of these small copies
    for target_S, row_S in zip(into.numpy(), rows, strict=True):
        if target_S.ctypes.data != row_S.ctypes.data:
            target_S[: len(row_S)] = row_S
        target_S[len(row_S) :] = 0.0
    return into, torch.tensor(lens, dtype=torch.int64)


def collate_audio(cuts: Iterable[Cut], field: str, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
    """Load a channel of all ``cuts``: ([B, S] float32 padded with 0, [B] int64)."""
    return pad_rows([load_audio(cut, field, sample_rate_hz) for cut in cuts])


def _load(cut: Cut, field: str, sample_rate_hz: int, offset_s: float, out: FloatArray | None) -> FloatArray:
    if not isinstance(cut, MonoCut | MultiCut):  # lhotse mixes several recordings
        return _mean(cut.resample(sample_rate_hz).load_audio())
    if field == RECORDING:
        recording, channels = cut.recording, [cut.channel] if isinstance(cut, MonoCut) else list(cut.channel)
    else:
        recording, channels = getattr(cut, field), None
    longest_s = min(cut.duration - offset_s, recording.duration - cut.start)
    if recording.sampling_rate == sample_rate_hz and not recording.transforms and len(recording.sources) == 1:
        samples_CS = _decode(recording, cut.start, longest_s, out)
        if samples_CS is not None:
            own = recording.sources[0].channels
            if channels is None or list(channels) == own:
                return _mean(samples_CS)
            return _mean(samples_CS[[own.index(channel) for channel in channels]])
    if recording.sampling_rate != sample_rate_hz:
        recording = recording.resample(sample_rate_hz)
    return _mean(recording.load_audio(channels=channels, offset=cut.start, duration=longest_s))


def _decode(recording: Recording, start_s: float, duration_s: float, out: FloatArray | None) -> FloatArray | None:
    """Decode with dr_flac or libsndfile, [C, S], a single channel into ``out``; None where neither knows the format.

    lhotse ends up at libsndfile too, after looking for each of its other backends, at every read: that takes as
    long as decoding a few seconds.
    """
    source = recording.sources[0]
    if source.type not in ("memory", "file"):
        return None
    num_samples = compute_num_samples(duration_s, recording.sampling_rate)
    is_flac = source.type == "memory" and source.source[:4] == b"fLaC"
    if (
        is_flac
        and start_s == 0
        and (samples_CS := _decode_flac(source.source, recording, num_samples, out)) is not None
    ):
        return samples_CS
    try:
        with soundfile.SoundFile(io.BytesIO(source.source) if source.type == "memory" else source.source) as file:
            if file.samplerate != recording.sampling_rate:
                return None
            if start := compute_num_samples(start_s, recording.sampling_rate):
                file.seek(start)
            if file.channels == 1 and out is not None and len(out) >= num_samples:
                mono_S: FloatArray = file.read(num_samples, dtype="float32", out=out[:num_samples])
                return mono_S[None]
            samples: FloatArray = file.read(num_samples, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError:
        return None
    return samples.T


def _decode_flac(data: bytes, recording: Recording, num_samples: int, out: FloatArray | None) -> FloatArray | None:
    """Decode a whole 16 bit FLAC: dr_flac takes half of libsndfile's time, and gives the same samples."""
    try:
        if miniaudio.flac_get_info(data).sample_format != miniaudio.SampleFormat.SIGNED16:
            return None
        decoded = miniaudio.flac_read_s16(data)
    except miniaudio.MiniaudioError:
        return None  # libsndfile's message is the better one
    if decoded.sample_rate != recording.sampling_rate:
        return None
    samples_SC = np.frombuffer(decoded.samples, dtype=np.int16).reshape(-1, decoded.nchannels)[:num_samples]
    if decoded.nchannels == 1 and out is not None and len(out) >= len(samples_SC):
        mono_S = out[: len(samples_SC)]
        np.multiply(samples_SC[:, 0], _INT16_SCALE, out=mono_S)
        return mono_S[None]
    return np.multiply(samples_SC.T, _INT16_SCALE)


def _mean(samples: FloatArray) -> FloatArray:
    if samples.ndim == 2 and len(samples) > 1:
        samples = np.asarray(samples.mean(axis=0), dtype=np.float32)
    return np.ascontiguousarray(samples.reshape(-1))
