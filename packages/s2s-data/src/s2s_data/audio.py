"""Loading and collating one channel's audio. Shapes: ``B`` batch, ``S`` samples."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from lhotse.cut import Cut
from lhotse.utils import compute_num_samples
from torch import Tensor

from s2s_data.errors import DataError
from s2s_data.shar import RECORDING

# A recording may be this much shorter than its cut: codecs and resampling round to frames of their own.
MAX_MISSING_S = 0.16


def place_of(cut: Cut) -> str:
    """Name a cut and where it comes from, for messages."""
    origin = (cut.custom or {}).get("shard_origin") if hasattr(cut, "custom") else None
    return f"cut {cut.id} of {origin}" if origin else f"cut {cut.id}"


def load_audio(cut: Cut, field: str, sample_rate_hz: int) -> npt.NDArray[np.float32]:
    """Load a channel of ``cut`` at ``sample_rate_hz``.

    Parameters
    ----------
    cut
        The dialogue.
    field
        ``recording`` or the name of a custom recording.
    sample_rate_hz
        The wanted rate: audio of another one is resampled.

    Returns
    -------
    ndarray
        [S] float32, S being the cut's duration; channels are averaged, a few missing samples are silence.

    Raises
    ------
    DataError
        If the audio can't be read, or is shorter than the cut by more than ``MAX_MISSING_S``.

    """
    try:
        if field == RECORDING:
            samples = cut.resample(sample_rate_hz).load_audio()
        else:
            recording = getattr(cut, field)
            if recording.sampling_rate != sample_rate_hz:
                recording = recording.resample(sample_rate_hz)
            duration_s = min(cut.duration, recording.duration - cut.start)
            samples = recording.load_audio(offset=cut.start, duration=duration_s)
    except Exception as error:  # lhotse raises what its audio backends do, of any kind
        raise DataError(f"{place_of(cut)}: can't read its {field}: {type(error).__name__}: {error}") from error
    samples_S = samples.mean(axis=0) if samples.ndim == 2 and len(samples) > 1 else samples.reshape(-1)
    num_samples = compute_num_samples(cut.duration, sample_rate_hz)
    if num_samples - len(samples_S) > MAX_MISSING_S * sample_rate_hz:
        raise DataError(
            f"{place_of(cut)}: its {field} has {len(samples_S) / sample_rate_hz:.2f} s but the cut "
            f"{cut.duration:.2f} s: both channels must start at 0 and have the cut's duration"
        )
    audio_S = np.zeros(num_samples, dtype=np.float32)
    audio_S[: len(samples_S)] = samples_S[:num_samples]
    return audio_S


def collate_audio(cuts: Iterable[Cut], field: str, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
    """Load a channel of all ``cuts``: ([B, S] float32 padded with 0, [B] int64)."""
    # numpy, because torch would wake its threads for each of these small copies
    rows = [load_audio(cut, field, sample_rate_hz) for cut in cuts]
    audio_BS = np.zeros((len(rows), max(map(len, rows))), dtype=np.float32)
    for row, audio_S in zip(audio_BS, rows, strict=True):
        row[: len(audio_S)] = audio_S
    return torch.from_numpy(audio_BS), torch.tensor([len(row) for row in rows], dtype=torch.int64)
