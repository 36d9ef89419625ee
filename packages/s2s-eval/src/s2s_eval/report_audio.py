"""Audio small enough to live inside a web page."""

import base64
import io

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from s2s_eval.asr import Samples

# MP3, because every browser plays it and, unlike Opus, it holds 22.05 kHz; what libsndfile writes keeps its start and
# its length to the sample. About 37 kbit/s for mono speech at this setting.
MP3_COMPRESSION = 0.6
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
FALLBACK_RATE_HZ = 24000
PEAKS_PER_S = 40
MAX_PEAKS = 1200


def mp3_data_url(audio: npt.NDArray[np.float32], sample_rate: int) -> str:
    """Return the audio, [S] or [S, channels], as a data: URL of an MP3."""
    if sample_rate not in MP3_RATES_HZ:
        audio, sample_rate = soxr.resample(audio, sample_rate, FALLBACK_RATE_HZ), FALLBACK_RATE_HZ
    buffer = io.BytesIO()
    soundfile.write(
        buffer, audio, sample_rate, format="MP3", bitrate_mode="VARIABLE", compression_level=MP3_COMPRESSION
    )
    return "data:audio/mpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def waveform_peaks(audio_S: Samples, sample_rate: int, duration_s: float) -> list[int]:
    """Return the waveform's height over ``duration_s`` at equal steps, 0 (silence) to 100 (full scale)."""
    num_peaks = min(MAX_PEAKS, max(1, round(duration_s * PEAKS_PER_S)))
    samples = np.zeros(max(num_peaks, round(duration_s * sample_rate)), np.float32)
    usable = audio_S[: len(samples)]
    samples[: len(usable)] = usable
    edges = np.linspace(0, len(samples), num_peaks, endpoint=False).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), edges)
    return [int(peak) for peak in np.clip(np.rint(peaks * 100), 0, 100)]
