"""Small real codecs of all families at random weights, and audio for them."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from tests.s2s_model.builders import codec_config, keep_sound_alive, with_sound


def make_mimi(folder: Path, **overrides: Any) -> str:
    """Write a Mimi of 24 kHz and 12.5 frames a second: 6 codebooks of 16 entries."""
    from transformers import MimiConfig, MimiModel

    settings: dict[str, Any] = {
        "hidden_size": 16,
        "num_filters": 4,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": 6,
        "upsample_groups": 16,
        "num_hidden_layers": 2,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "layer_scale_initial_scale": 1.0,
    }
    return _save(MimiModel, MimiConfig(**(settings | overrides)), folder)


def make_encodec(folder: Path, **overrides: Any) -> str:
    """Write an EnCodec of 24 kHz and 12.5 frames a second: 2 or 4 codebooks of 16 entries."""
    from transformers import EncodecConfig, EncodecModel

    settings: dict[str, Any] = {
        "target_bandwidths": [0.11, 0.21],  # EnCodec counts 13 frames a second of 4 bits for each codebook
        "hidden_size": 8,
        "num_filters": 2,
        "upsampling_ratios": [8, 8, 6, 5],
        "codebook_size": 16,
    }
    return _save(EncodecModel, EncodecConfig(**(settings | overrides)), folder, gain=2.0)


def make_dac(folder: Path, **overrides: Any) -> str:
    """Write a DAC of 16 kHz and 12.5 frames a second: 3 codebooks of 16 entries; one of its strides is odd."""
    from transformers import DacConfig, DacModel

    settings: dict[str, Any] = {
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 64,
        "downsampling_ratios": [4, 5, 8, 8],
        "n_codebooks": 3,
        "codebook_size": 16,
        "codebook_dim": 4,
    }
    return _save(DacModel, DacConfig(**(settings | overrides)), folder, gain=6.0)


def make_nemo(folder: Path, **overrides: Any) -> str:
    """Write a NeMo codec of 22.05 kHz and 12.5 frames a second: 2 codebooks of 20 entries."""
    from nemo.collections.tts.models import AudioCodecModel

    torch.manual_seed(1)
    model = with_sound(AudioCodecModel(OmegaConf.merge(codec_config(), overrides)))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_to(str(folder / "codec.nemo"))
    return str(folder / "codec.nemo")


MAKERS = {"mimi": make_mimi, "encodec": make_encodec, "dac": make_dac, "nemo": make_nemo}


def _save(model_class: Any, config: Any, folder: Path, gain: float = 1.0) -> str:
    torch.manual_seed(0)
    model = model_class(config)
    keep_sound_alive(model, gain)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("codebook.embed", "codebook.embed_sum")):  # zeros in a fresh model
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    return str(folder)


def noise(num_samples: int, *, seed: int = 0) -> Tensor:
    """Noise [1, S] whose loudness goes up and down, so that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    loudness_S = torch.sin(torch.arange(num_samples) / 3000.0).abs() + 0.05
    return torch.randn(1, num_samples, generator=generator) * loudness_S * 0.3
