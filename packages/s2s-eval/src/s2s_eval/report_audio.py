"""Audio small enough to live inside a web page."""

import base64
import io
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from s2s_eval.asr import Samples
from s2s_eval.samples import Wavs

log = logging.getLogger(__name__)

# MP3, because every browser plays it and, unlike Opus, it holds 22.05 kHz; what libsndfile writes keeps its start and
# its length to the sample. Speech with as much silence takes about 19 kbit/s a channel at this setting.
MP3_COMPRESSION = 0.6
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FALLBACK_RATE_HZ = 24000
PEAKS_PER_S = 40
MAX_PEAKS = 8000
MAX_ENCODERS = 8


@dataclass(frozen=True)
class PageAudio:
    """The audio of one dialogue as the page holds it: MP3s and waveforms, both base64."""

    duration_s: float = 0.0
    rate: int = 0  # of the user's and the generated audio, in Hz
    tracks: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, str] = field(default_factory=dict)
    error: str | None = None  # why there is none


def audio_islands(wavs: Iterable[tuple[int, Wavs]]) -> Iterator[tuple[int, PageAudio]]:
    """Encode dialogue after dialogue, in threads, a few ahead of the reader and no more."""
    workers = min(MAX_ENCODERS, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers, thread_name_prefix="report") as pool:
        pending: deque[tuple[int, Future[PageAudio]]] = deque()
        for number, files in wavs:
            pending.append((number, pool.submit(_read_audio, files)))
            if len(pending) > 2 * workers:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())


def _finished(number: int, sound: Future[PageAudio]) -> tuple[int, PageAudio]:
    return number, sound.result()


def _read_audio(wavs: Wavs) -> PageAudio:
    try:
        return _encode(wavs)
    except soundfile.SoundFileError as error:  # a killed run leaves half a file: the other dialogues are fine
        log.warning("the report is without the audio of %s: %s", wavs.stereo, error)
        return PageAudio(error=str(error))


def _encode(wavs: Wavs) -> PageAudio:
    stereo, rate = soundfile.read(wavs.stereo, dtype="float32", always_2d=True)
    reference, reference_rate = soundfile.read(wavs.reference, dtype="float32")
    duration_s = max(len(stereo) / rate, len(reference) / reference_rate)
    tracks = {
        "user": (np.ascontiguousarray(stereo[:, 0]), rate),
        "reference": (reference, reference_rate),
        "generated": (np.ascontiguousarray(stereo[:, 1]), rate),
    }
    return PageAudio(
        duration_s,
        rate,
        {name: _base64(mp3(*track)) for name, track in tracks.items()},
        {name: _base64(waveform_peaks(*track, duration_s).tobytes()) for name, track in tracks.items()},
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def mp3(audio_S: Samples, sample_rate: int) -> bytes:
    """Return the audio [S] at ``sample_rate`` Hz as an MP3; a rate that MP3 hasn't becomes 24 kHz."""
    if sample_rate not in MP3_RATES_HZ:
        audio_S, sample_rate = soxr.resample(audio_S, sample_rate, FALLBACK_RATE_HZ), FALLBACK_RATE_HZ
    buffer = io.BytesIO()
    soundfile.write(
        buffer, audio_S, sample_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=MP3_COMPRESSION
    )
    return buffer.getvalue()


def waveform_peaks(audio_S: Samples, sample_rate: int, duration_s: float) -> npt.NDArray[np.uint8]:
    """Return the waveform's height over ``duration_s`` at equal steps, 0 (silence) to 100 (full scale)."""
    num_peaks = min(MAX_PEAKS, max(1, round(duration_s * PEAKS_PER_S)))
    samples = np.zeros(max(num_peaks, round(duration_s * sample_rate)), np.float32)
    usable = audio_S[: len(samples)]
    samples[: len(usable)] = usable
    edges = np.linspace(0, len(samples), num_peaks, endpoint=False).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), edges)
    heights: npt.NDArray[np.uint8] = np.clip(np.rint(peaks * 100), 0, 100).astype(np.uint8)
    return heights
