"""The neural audio codec: frozen, float32, outside the model's parameters and checkpoints.

Shapes: `B` batch, `S` samples, `T` frames, `K` codebooks.
"""

import hashlib
from typing import Any, Protocol

import torch
from torch import Tensor

from s2s_model.nemo_file import hush_nemo, load_nemo


class AudioCodec(Protocol):
    """What the model asks of a codec."""

    @property
    def frame_rate(self) -> float:
        """Frames a second."""

    @property
    def sample_rate(self) -> int:
        """Samples a second, in and out."""

    @property
    def num_codebooks(self) -> int:
        """Codes a frame (K)."""

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook."""

    @property
    def fingerprint(self) -> str:
        """Identifies the codec's weights; stored with codes made by it."""

    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Float audio to int64 codes [B, T, K] and the valid frames [B]."""

    def decode(self, codes_BTK: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Codes to float32 audio [B, S] and the valid samples [B]."""

    def silence_codes(self) -> Tensor:
        """The codes [K] of a silent frame."""

    def parameter_names(self) -> list[str]:
        """Names of the frozen parameters, as a `freeze_params` regex would see them."""


class NemoCodec:
    """NeMo's `AudioCodecModel`.

    A plain object, not a submodule: Lightning then neither casts it to bf16, nor trains, nor saves it.
    """

    def __init__(self, model: Any) -> None:
        with torch.inference_mode(False):
            self._model = model.float().eval()
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        self._model.discriminator = None  # only its own training needs it
        self._fingerprint = _fingerprint(self._model)
        self._silence: Tensor | None = None

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return float(self._model.sample_rate) / int(self._model.samples_per_frame)

    @property
    def sample_rate(self) -> int:
        """Samples a second of the decoded audio."""
        return int(self._model.output_sample_rate)

    @property
    def num_codebooks(self) -> int:
        """Codes a frame (K)."""
        return int(self._model.num_codebooks)

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook."""
        return int(self._model.vector_quantizer.codebook_size)

    @property
    def fingerprint(self) -> str:
        """`nemo-<hash of the weights>`."""
        return self._fingerprint

    @torch.no_grad()
    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode audio [B, S] at `sample_rate` to codes [B, T, K] int64; returns them with the valid frames [B]."""
        with torch.autocast(audio_BS.device.type, enabled=False):
            codes_BKT, frames_B = self._on(audio_BS.device).encode(audio=audio_BS.float(), audio_len=lens_B)
        return codes_BKT.transpose(1, 2).long(), frames_B

    @torch.no_grad()
    def decode(self, codes_BTK: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Decode codes [B, T, K] to audio [B, S] float32; returns it with the valid samples [B]."""
        with torch.autocast(codes_BTK.device.type, enabled=False):
            audio_BS, samples_B = self._on(codes_BTK.device).decode(tokens=codes_BTK.transpose(1, 2), tokens_len=lens_B)
        return audio_BS, samples_B

    def silence_codes(self) -> Tensor:
        """The codes [K] of the middle frame of a silent second, on the codec's device."""
        if self._silence is None:
            device = next(self._model.parameters()).device
            silence = torch.zeros(1, self.sample_rate, device=device)
            codes_BTK, _ = self.encode(silence, torch.tensor([self.sample_rate], device=device))
            self._silence = codes_BTK[0, codes_BTK.shape[1] // 2]
        return self._silence

    def parameter_names(self) -> list[str]:
        """Names of the frozen parameters, as a `freeze_params` regex would see them."""
        return [f"audio_codec.{name}" for name, _ in self._model.named_parameters()]

    def _on(self, device: torch.device) -> Any:
        """The model on the device of its input: Lightning doesn't move what isn't a submodule."""
        if next(self._model.parameters()).device != device:
            self._model.to(device)
        return self._model


def load_codec(name_or_path: str, *, key: str = "codec") -> AudioCodec:
    """Load NeMo's codec from a `.nemo` file or, by name, from NeMo's registry; `key` is what errors begin with.

    Raises:
        FileNotFoundError: the path doesn't exist.
        ValueError: the file can't be read as an `AudioCodecModel`.
    """
    hush_nemo()
    from nemo.collections.tts.models import AudioCodecModel

    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # under bf16-true Lightning makes bf16 the default while it builds
    try:
        return NemoCodec(load_nemo(AudioCodecModel, name_or_path, key=key, kind="AudioCodecModel"))
    finally:
        torch.set_default_dtype(previous)


def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(("audio_encoder.", "audio_decoder.", "vector_quantizer.")):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"nemo-{digest.hexdigest()[:16]}"
