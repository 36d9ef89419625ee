"""The speaker encoder whose weights the package Resemblyzer ships: GE2E, https://arxiv.org/abs/1710.10467.

Only the weights file is read. Importing the package would need webrtcvad, which trims silence; we do that ourselves.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from s2s_eval.asr import Samples
from s2s_eval.lifecycle import TorchModel, one_line

# what the weights were trained on
NUM_MELS = 40
HIDDEN = 256
HOP = 160  # 10 ms
WINDOW = 400  # 25 ms
LOUDNESS_DBFS = -30.0  # audio below it is brought up to it
PART_FRAMES = 160  # 1.6 s: the audio is embedded in parts, and the parts' embeddings are averaged
PART_HOP = 77  # frames
MIN_LAST_PART = 0.75  # a last part with less sound than this share is left out
MIN_RMS = 1e-8


class Resemblyzer(TorchModel):
    """See :class:`s2s_eval.speaker_similarity.SpeakerModel`."""

    sample_rate_hz = 16000

    def __init__(self, device: str) -> None:
        spec = importlib.util.find_spec("resemblyzer")
        assert spec is not None and spec.submodule_search_locations, "checked before loading"  # noqa: PT018
        path = Path(spec.submodule_search_locations[0]) / "pretrained.pt"
        module = _Encoder()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            # the file also holds the two scalars of the training's loss
            module.load_state_dict({name: value for name, value in state.items() if not name.startswith("similarity")})
        except Exception as error:
            raise ValueError(
                f"speaker_similarity=resemblyzer: could not load {path}: {one_line(error)}. Reinstall Resemblyzer 0.1.4"
            ) from error
        super().__init__(module, device)

    def embed(self, audio_S: Samples) -> Samples:
        """Return the audio's embedding [256]."""
        with torch.inference_mode():
            unit: Samples = self._module(torch.from_numpy(audio_S).to(self._device)).cpu().numpy()
        return unit


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from librosa.filters import mel

        self.lstm = nn.LSTM(NUM_MELS, HIDDEN, num_layers=3, batch_first=True)
        self.linear = nn.Linear(HIDDEN, HIDDEN)
        filters = torch.from_numpy(mel(sr=16000, n_fft=WINDOW, n_mels=NUM_MELS))
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, audio_S: Tensor) -> Tensor:
        """Return the embedding [H], of length 1, of the audio [S]."""
        starts = _part_starts(len(audio_S))
        last = starts[-1] + PART_FRAMES
        padded = nn.functional.pad(_loud_enough(audio_S), (0, max(0, last * HOP - len(audio_S))))
        mels_TM = self._mels(padded)
        parts_NTM = torch.stack([mels_TM[start : start + PART_FRAMES] for start in starts])
        _, (hidden_LNH, _) = self.lstm(parts_NTM)
        parts_NH = nn.functional.normalize(torch.relu(self.linear(hidden_LNH[-1])), dim=1)
        return nn.functional.normalize(parts_NH.mean(dim=0), dim=0)

    def _mels(self, audio_S: Tensor) -> Tensor:
        """Return the mel power spectrogram [T, M], no logarithm, frames centred on multiples of 10 ms."""
        window: Tensor = self.window  # type: ignore[assignment]
        spectrum_FT = torch.stft(
            audio_S, WINDOW, HOP, window=window, center=True, pad_mode="constant", return_complex=True
        )
        filters_MF: Tensor = self.filters  # type: ignore[assignment]
        return (filters_MF @ spectrum_FT.abs() ** 2).T


def _loud_enough(audio_S: Tensor) -> Tensor:
    rms = audio_S.square().mean().sqrt().clamp(min=MIN_RMS)
    return audio_S * (10 ** (LOUDNESS_DBFS / 20) / rms).clamp(min=1.0)


def _part_starts(num_samples: int) -> list[int]:
    """Return the frame where each part begins; there is at least one."""
    num_frames = int(np.ceil((num_samples + 1) / HOP))
    starts = list(range(0, max(1, num_frames - PART_FRAMES + PART_HOP + 1), PART_HOP))
    heard = (num_samples - starts[-1] * HOP) / (PART_FRAMES * HOP)
    return starts[:-1] if heard < MIN_LAST_PART and len(starts) > 1 else starts
