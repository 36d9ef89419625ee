"""What the model asks of a codec, and what all codecs share: frozen, blind to padding, float32 outside.

Shapes: `B` batch, `S` samples, `T` frames, `K` codebooks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from s2s_model.dtypes import default_dtype

RATE_TOLERANCE = 1e-6
PRECISIONS = ("float16", "float32")


class AudioCodec(ABC):
    """A frozen codec: audio to K codes a frame, and back.

    A plain object around `model`, not a submodule of who uses it: Lightning then neither casts it to bf16, nor
    trains, nor saves it. It follows its input to another device by itself.

    Attributes:
        sample_rate: Hz of the audio, in and out.
        samples_per_frame: samples of a frame.
        num_codebooks: codes of a frame (K).
        codebook_size: entries of each codebook.
        fingerprint: names the codec and its weights; it is stored with codes made by it.
        device: where it codes; that of its last input.
    """

    def __init__(
        self,
        model: Any,
        *,
        sample_rate: int,
        samples_per_frame: int,
        num_codebooks: int,
        codebook_size: int,
        fingerprint: str,
    ) -> None:
        with torch.inference_mode(False):
            self._model = model.float().eval().requires_grad_(False)
        self.device: torch.device = next(self._model.parameters()).device
        self.sample_rate = sample_rate
        self.samples_per_frame = samples_per_frame
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.fingerprint = fingerprint
        self._silence_K: Tensor | None = None
        self._contexts: dict[int, Any] = {}  # what `decode_context` measured, by its `max_frames`

    def __deepcopy__(self, memo: dict[int, Any]) -> "AudioCodec":
        """A copy of a model shares its codec, which never changes."""
        return self

    @property
    def frame_rate(self) -> float:
        """Frames a second (Hz)."""
        return self.sample_rate / self.samples_per_frame

    @property
    def recurrent(self) -> bool:
        """Whether a layer carries its state on without an end, as an LSTM does."""
        return any(isinstance(module, nn.RNNBase) for module in self._model.modules())

    @torch.no_grad()
    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode float audio [B, S] at `sample_rate`, of which `lens_B` samples are valid.

        Returns codes [B, T, K] int64 with T = ceil(S / samples_per_frame), and the valid frames [B] int64,
        ceil(lens_B / samples_per_frame). What lies behind an example's samples is taken as silence.
        """
        S = audio_BS.shape[1]
        T = -(-S // self.samples_per_frame)
        valid_BS = torch.arange(S, device=audio_BS.device) < lens_B[:, None]
        # Whole frames: where a length isn't a multiple of their strides, codecs differ in how they round it.
        whole_BS = pad(audio_BS.float().where(valid_BS, 0.0), (0, T * self.samples_per_frame - S))
        frames_B = torch.div(lens_B + self.samples_per_frame - 1, self.samples_per_frame, rounding_mode="floor").long()
        with float32_only(audio_BS.device.type):
            self._move_to(audio_BS.device)
            codes_BKT = self._encode(whole_BS, frames_B)
        return codes_BKT.transpose(1, 2).long(), frames_B

    @torch.no_grad()
    def decode(self, codes_BTK: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """Decode codes [B, T, K], of which `frames_B` frames are valid.

        Returns audio [B, T * samples_per_frame] float32, zero behind the valid samples, and the valid samples [B],
        frames_B * samples_per_frame. Codes behind the valid frames are taken as 0.

        Raises:
            ValueError: K isn't the codec's.
        """
        T, K = codes_BTK.shape[1:]
        if self.num_codebooks != K:
            raise ValueError(f"the codes have {K} codebooks, the codec {self.fingerprint} decodes {self.num_codebooks}")
        valid_BT = torch.arange(T, device=codes_BTK.device) < frames_B[:, None]
        codes_BKT = codes_BTK.where(valid_BT[..., None], 0).transpose(1, 2)
        with float32_only(codes_BTK.device.type):
            self._move_to(codes_BTK.device)
            audio_BS = self._decode(codes_BKT, frames_B)
        # Transposed convolutions of odd strides lack a few samples at the end, others have a few too many.
        audio_BS = pad(audio_BS, (0, T * self.samples_per_frame - audio_BS.shape[1]))
        valid_BS = valid_BT.repeat_interleave(self.samples_per_frame, dim=1)
        return audio_BS.where(valid_BS, 0.0), frames_B * self.samples_per_frame

    @property
    def decodes_beginnings(self) -> bool:
        """Whether `decode_newest` takes `newest_B`: streams that begin at different times are then decoded at once."""
        return False

    @torch.no_grad()
    def decode_newest(self, codes_BTK: Tensor, num_frames: int, newest_B: Tensor | None = None) -> Tensor:
        """The end of what `decode` gives: audio [B, num_frames * samples_per_frame] of codes [B, T, K].

        The codec has to be on the codes' device already, and nothing waits for that device.

        Args:
            codes_BTK: int64.
            num_frames: of the end.
            newest_B: how many frames of each there are, its last ones; None: all. The audio of others is silence.
                Where `decodes_beginnings` alone.
        """
        B, T = codes_BTK.shape[:2]
        with float32_only(codes_BTK.device.type):
            audio_BS = self._decode_newest(codes_BTK.transpose(1, 2), num_frames, newest_B)
            if audio_BS is None:
                assert newest_B is None, "sequences of this codec begin with their first frame"
                audio_BS = self._decode(codes_BTK.transpose(1, 2), torch.full((B,), T, device=codes_BTK.device))
                audio_BS = pad(audio_BS, (0, T * self.samples_per_frame - audio_BS.shape[1]))
        return audio_BS[:, -num_frames * self.samples_per_frame :]

    def _decode_newest(self, codes_BKT: Tensor, num_frames: int, newest_B: Tensor | None) -> Tensor | None:
        """Audio of the last frames alone, where a codec can do that for less than all; else None."""
        return None

    def silence_codes(self) -> Tensor:
        """The codes [K] of the middle frame of a silent second, on the codec's device."""
        device = self.device
        if self._silence_K is None:
            with torch.inference_mode(False):  # kept, so it must be fit for training too
                silence = torch.zeros(1, self.sample_rate, device=device)
                codes_BTK, _ = self.encode(silence, torch.tensor([self.sample_rate], device=device))
            self._silence_K = codes_BTK[0, codes_BTK.shape[1] // 2]
        return self._silence_K.to(device)

    def parameter_names(self) -> list[str]:
        """Names of the frozen parameters, as a `freeze_params` regex would see them."""
        return [f"audio_codec.{name}" for name, _ in self._model.named_parameters()]

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, from which `load_codec(folder)` makes the same codec."""

    @abstractmethod
    def _encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        """Encode whole frames of audio: codes [B, K, T]."""

    @abstractmethod
    def _decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        """Decode codes [B, K, T]: audio [B, S], S near T * samples_per_frame."""

    def _move_to(self, device: torch.device) -> None:
        if self.device != device:
            with torch.inference_mode(False):  # else the moved weights would be of no use outside it
                self._model.to(device)
            self.device = device


@contextmanager
def float32_only(device_type: str) -> Iterator[None]:
    """No autocast, and float32 where a dtype is left open.

    Under bf16-true Lightning makes bf16 the default dtype. Codecs compute lengths by dividing integers, and bf16
    counts no further than 256.
    """
    with default_dtype(torch.float32), torch.autocast(device_type, enabled=False):
        yield


def check_precision(precision: str | None, key: str) -> None:
    """Refuse a precision that no codec has.

    Raises:
        ValueError: it is none of `PRECISIONS`; the message begins with `key`.
    """
    if precision is not None and precision not in PRECISIONS:
        raise ValueError(f"{key}: {precision!r} is no precision: use {' or '.join(PRECISIONS)}, or leave it out")


def check_codec_rate(codec: AudioCodec, frame_length_s: float) -> None:
    """Refuse a codec whose frames aren't `frame_length_s` seconds long.

    Raises:
        ValueError: they aren't; the message quotes both rates.
    """
    if abs(codec.frame_rate * frame_length_s - 1) > RATE_TOLERANCE:
        raise ValueError(
            f"model.pretrained_audio_codec makes {codec.frame_rate:g} frames a second, data.frame_length "
            f"{frame_length_s:g} s asks for {1 / frame_length_s:g}: use a codec of that rate"
        )
