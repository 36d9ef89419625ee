"""Resampling in memory. Shapes: ``S`` samples."""

import torch
from lhotse.augmentation import get_or_create_resampler

from s2s_data.dialogue import FloatArray


def resampled(audio_S: FloatArray, from_rate_hz: int, to_rate_hz: int) -> FloatArray:
    """Return ``audio_S`` of ``from_rate_hz`` at ``to_rate_hz``; moments stay where they were."""
    if from_rate_hz == to_rate_hz:
        return audio_S
    # lhotse's sinc filter in torch, kept for each pair; its Recording.resample would need scipy or torchaudio
    audio: FloatArray = get_or_create_resampler(from_rate_hz, to_rate_hz)(torch.tensor(audio_S)).numpy()
    return audio
