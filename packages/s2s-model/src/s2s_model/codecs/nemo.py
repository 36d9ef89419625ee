"""NeMo's `AudioCodecModel`, from a `.nemo` file or from a folder without pickle.

Shapes: `B` batch, `S` samples, `T` frames, `K` codebooks.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from s2s_model.codecs.base import AudioCodec, float32_only
from s2s_model.codecs.hifigan_coding import HiFiGANCoding, check_float16, hifigan_coding
from s2s_model.codecs.newest_frames import NewestFrames, newest_frames
from s2s_model.nemo_file import hush_nemo, load_nemo
from s2s_model.targets import check_targets

MODEL_TYPE = "nemo_audio_codec"
WEIGHTS = "model.safetensors"
SHORTEST_FRAMES = 4  # NeMo's convolutions of 7 frames mirror 3 at each end, and crash where there are no more
FINGERPRINTED = ("audio_encoder.", "audio_decoder.", "vector_quantizer.")
STORED = (*FINGERPRINTED, "semantic_codec.")
# What coding needs, and the losses: NeMo builds no codec without them, though they hold no weights.
KEPT_SECTIONS = (
    "sample_rate",
    "output_sample_rate",
    "samples_per_frame",
    "audio_encoder",
    "audio_decoder",
    "vector_quantizer",
    "loss_resolutions",
    "mel_loss_dims",
    "generator_loss",
    "discriminator_loss",
)


class NemoCodec(AudioCodec):
    """NeMo's `AudioCodecModel`; a codec whose output has another rate than its input is spoken to at the output's.

    On a GPU its HiFi-GAN is computed by hifigan.py, in float16 unless `precision` says otherwise.

    Raises:
        ValueError: it has no quantizer, codebooks of unequal size, another K than `num_codebooks`, or can't have
            `precision`; the message begins with `key`.
    """

    def __init__(
        self, model: Any, *, key: str = "codec", num_codebooks: int | None = None, precision: str | None = None
    ) -> None:
        model.discriminator = None  # only its own training needs it
        self._key, self._precision = key, precision
        self._coding: HiFiGANCoding | None = None
        self._newest: dict[
            torch.device, NewestFrames | None
        ] = {}  # made when first asked for, and kept: graphs read it
        self._prepared_on = torch.device("cpu")  # where nothing is prepared
        if precision == "float16":
            check_float16(model, key)
        super().__init__(
            model.float(),
            sample_rate=int(model.output_sample_rate),
            samples_per_frame=_samples_per_frame(model, key),
            num_codebooks=_num_codebooks(model, key, num_codebooks),
            codebook_size=_codebook_size(model, key),
            fingerprint=_fingerprint(model),
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write NeMo's config as far as coding needs it, and the weights."""
        from safetensors.torch import save_file

        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        config = {"model_type": MODEL_TYPE, "nemo": _coding_config(self._model.cfg)}
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {name: value.cpu().contiguous().clone() for name, value in _stored(self._model).items()}, path / WEIGHTS
        )

    def _encode(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        T = audio_BS.shape[1] // self.samples_per_frame
        audio_BS = pad(audio_BS, (0, max(SHORTEST_FRAMES - T, 0) * self.samples_per_frame))
        frames_B = frames_B.where(frames_B.max() >= SHORTEST_FRAMES, SHORTEST_FRAMES)
        codes_BKT = self._encode_long(audio_BS, frames_B)
        # NeMo cuts to the longest example of the batch.
        codes: Tensor = pad(codes_BKT, (0, T - codes_BKT.shape[2]))
        return codes

    def _encode_long(self, audio_BS: Tensor, frames_B: Tensor) -> Tensor:
        lens_B, rate = frames_B * self.samples_per_frame, self.sample_rate
        if self._coding is None:
            codes_BKT: Tensor = self._model.encode(audio=audio_BS, audio_len=lens_B, sample_rate=rate)[0]
            return codes_BKT
        if self._model.sample_rate != rate:
            audio_BS, lens_B = self._model.preprocess_audio(audio=audio_BS, audio_len=lens_B, sample_rate=rate)
            frames_B = lens_B // self._model.samples_per_frame
        return self._coding.encode(audio_BS, frames_B)

    def _decode(self, codes_BKT: Tensor, frames_B: Tensor) -> Tensor:
        codes_BKT = pad(codes_BKT, (0, max(SHORTEST_FRAMES - codes_BKT.shape[2], 0)))
        if self._coding is not None:
            return self._coding.decode(codes_BKT, frames_B)
        audio_BS: Tensor = self._model.decode(tokens=codes_BKT, tokens_len=frames_B)[0]
        return audio_BS

    @property
    def decodes_beginnings(self) -> bool:
        """Of a causal `ResNetDecoder`; the first time on a device computes the weights that it decodes with there."""
        return self._newest_decoder() is not None

    def _decode_newest(self, codes_BKT: Tensor, num_frames: int, newest_B: Tensor | None) -> Tensor | None:
        newest = self._newest_decoder()
        if newest is None:
            return None
        frames_B = torch.full((len(codes_BKT),), codes_BKT.shape[2], device=codes_BKT.device)
        return newest(self._model.dequantize(tokens=codes_BKT, tokens_len=frames_B), num_frames, newest_B)

    def _newest_decoder(self) -> NewestFrames | None:
        if self.device not in self._newest:
            self._newest[self.device] = newest_frames(self._model.audio_decoder)
        return self._newest[self.device]

    def _move_to(self, device: torch.device) -> None:
        if self.device == self._prepared_on == device:
            return
        super()._move_to(device)
        self._coding, self._prepared_on = None, device
        if device.type == "cuda":
            with torch.inference_mode(False), torch.no_grad(), float32_only(device.type):
                self._coding = hifigan_coding(self._model, self._precision, self._key)
                if self._coding is not None:  # it has weights of its own: these would only fill the GPU
                    self._model.audio_encoder.cpu()
                    self._model.audio_decoder.cpu()


def load_nemo_codec(name_or_path: str, *, key: str, num_codebooks: int | None, precision: str | None) -> NemoCodec:
    """Load a `.nemo` file or, by name, from NeMo's registry."""
    hush_nemo()
    from nemo.collections.tts.models import AudioCodecModel

    model = load_nemo(AudioCodecModel, name_or_path, key=key, kind="AudioCodecModel")
    return NemoCodec(model, key=key, num_codebooks=num_codebooks, precision=precision)


def load_nemo_folder(
    folder: Path, config: dict[str, Any], *, key: str, num_codebooks: int | None, precision: str | None
) -> NemoCodec:
    """Load what `NemoCodec.save_pretrained` wrote; `config` is the folder's `config.json`.

    Raises:
        ValueError: config or weights are missing, or don't fit each other.
    """
    hush_nemo()
    from nemo.collections.tts.models import AudioCodecModel
    from omegaconf import OmegaConf
    from safetensors.torch import load_file

    section = config.get("nemo")
    if not isinstance(section, dict):
        raise ValueError(f"{key}: {folder}/config.json has no section 'nemo': save the codec anew")
    check_targets(section, f"{key}: {folder}/config.json: nemo")
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{key}: {folder} has no {WEIGHTS}: save the codec anew")
    try:
        model = AudioCodecModel(OmegaConf.create(section))
        model.discriminator = None
        state = load_file(folder / WEIGHTS)
        model.load_state_dict(dict(state))
    except Exception as error:  # hydra, NeMo, safetensors and torch each raise their own
        raise ValueError(
            f"{key}: {folder} can't be loaded as a NeMo codec ({type(error).__name__}: {error})"
        ) from error
    if differing := sorted(state.keys() ^ _stored(model).keys()):  # NeMo itself lets them pass
        raise ValueError(
            f"{key}: weights and config in {folder} differ in {len(differing)} tensors, {differing[0]} first: "
            "save the codec anew"
        )
    return NemoCodec(model, key=key, num_codebooks=num_codebooks, precision=precision)


def _samples_per_frame(model: Any, key: str) -> int:
    """Samples of a frame of the decoded audio."""
    samples = int(model.samples_per_frame) * int(model.output_sample_rate) / int(model.sample_rate)
    if samples != int(samples):
        raise ValueError(
            f"{key}: the codec's frames of {model.samples_per_frame} samples at {model.sample_rate} Hz are {samples:g} "
            f"samples at its output's {model.output_sample_rate} Hz, but must be a whole number: use another codec"
        )
    return int(samples)


def _num_codebooks(model: Any, key: str, asked: int | None) -> int:
    if model.vector_quantizer is None:
        raise ValueError(f"{key}: the codec has no vector_quantizer, so it makes no codes: use another codec")
    own = int(model.vector_quantizer.num_codebooks)
    if asked not in (None, own):
        raise ValueError(f"{key}: num_codebooks is {asked}, but this NeMo codec works with {own} alone")
    return own


def _codebook_size(model: Any, key: str) -> int:
    """Entries of each codebook; quantizers state those of the first group, or a list."""
    quantizer = model.vector_quantizer
    groups = getattr(quantizer, "fsqs", None) or getattr(quantizer, "rvqs", None) or [quantizer]
    stated = [group.codebook_size for group in groups]
    sizes = {int(size) for one in stated for size in (one if isinstance(one, (list, tuple)) else [one])}
    if len(sizes) != 1:
        raise ValueError(
            f"{key}: the codec's codebooks have {', '.join(str(size) for size in sorted(sizes))} entries, but all must "
            "have one size: use another codec"
        )
    return sizes.pop()


def _coding_config(config: Any) -> dict[str, Any]:
    """The sections that coding needs, resolved."""
    from omegaconf import OmegaConf

    sections = OmegaConf.to_container(config, resolve=True)
    assert isinstance(sections, dict)
    kept: dict[str, Any] = {name: sections[name] for name in KEPT_SECTIONS if name in sections}
    if sections.get("semantic_codec"):
        kept["semantic_codec"] = _coding_config(config.semantic_codec)
    return kept | {"commit_loss_scale": 0.0}  # else NeMo refuses quantizers without such a loss


def _stored(model: Any) -> dict[str, Tensor]:
    """The weights that coding needs, by name."""
    return {
        name: value
        for name, value in model.state_dict().items()
        if name.startswith(STORED) and not name.startswith("semantic_codec.discriminator.")
    }


def _fingerprint(model: Any) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name.startswith(FINGERPRINTED):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return f"nemo-{digest.hexdigest()[:16]}"
