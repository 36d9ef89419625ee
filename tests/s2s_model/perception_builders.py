"""Small real encoders: NeMo's Conformers and ASR models, Whisper and w2v-BERT of transformers, at random weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2s_model.config import ModelConfig
from s2s_model.perception import Perception, build_perception
from tests.s2s_model import builders

FRAME_S, FRAME_SAMPLES, HIDDEN = 0.08, 1280, 24
CONNECTORS = "nemo.collections.speechlm2.modules.perception"
IDENTITY = {"_target_": f"{CONNECTORS}.IdentityConnector"}
SPEC_AUGMENT = {
    "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
    "freq_masks": 2,
    "freq_width": 8,
    "time_masks": 2,
    "time_width": 8,
}


def multi_layer(**overrides: Any) -> dict[str, Any]:
    """An adapter that reads the first layer and the last."""
    target = f"{CONNECTORS}.MultiLayerProjectionConnector"
    return {"_target_": target, "target_layer_ids": [0], "input_dim": 32, "output_dim": HIDDEN} | overrides


def section(
    encoder: dict[str, Any] | None = None, adapter: dict[str, Any] | None = None, **keys: Any
) -> dict[str, Any]:
    """A `model.perception` section: a causal Conformer of two layers, `encoder` over its keys."""
    base = builders.perception()
    base["encoder"] |= {"n_layers": 2, **(encoder or {})}
    if adapter is not None:
        base["modality_adapter"] = adapter
    return base | keys


def published_shape() -> dict[str, Any]:
    """The encoder of NVIDIA's streaming FastConformer-L, with an adapter of two layers."""
    causal = {"att_context_size": [70, 0], "conv_kernel_size": 9, "d_model": 512, "n_heads": 8}
    encoder = builders.conformer(80, 8) | causal | {"n_layers": 17, "subsampling_conv_channels": 256}
    parts = section(encoder, builders.conformer(512, 1) | causal | {"n_layers": 2})
    parts["preprocessor"]["features"] = 80
    return parts


def build(perception: dict[str, Any], hidden_size: int = HIDDEN, frame_s: float = FRAME_S, **keys: Any) -> Perception:
    """Perception in eval mode; `keys` are those of `model`."""
    keys = {"pretrained_weights": False} | keys
    config = ModelConfig(pretrained_llm="none", pretrained_audio_codec="none", perception=perception, **keys)
    torch.manual_seed(0)
    built = build_perception(config, hidden_size, frame_s).eval()
    if not keys["pretrained_weights"]:
        _stir(built)
    return built


@torch.no_grad()
def _stir(perception: Perception) -> None:
    """Give values to what starts at zero or one, and would hide that it isn't used."""
    for name, value in [*perception.named_parameters(), *perception.named_buffers()]:
        if "pos_bias" in name or name.endswith("running_mean"):
            value.normal_(std=0.5)
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)


def noise(frames: int, batch_size: int = 1, seed: int = 0) -> Tensor:
    """Audio [B, S] of whole frames."""
    return torch.randn(batch_size, frames * FRAME_SAMPLES, generator=torch.Generator().manual_seed(seed)) * 0.1


def encode(perception: Perception, audio_BS: Tensor, lens: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """The whole recordings through `perception`, without gradients."""
    lens = lens or [audio_BS.shape[1]] * len(audio_BS)
    with torch.no_grad():
        out: tuple[Tensor, Tensor] = perception(input_signal=audio_BS, input_signal_length=torch.tensor(lens))
    return out


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-4) -> bool:
    """Equal up to `rtol` of the largest value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return (ours - theirs).abs().max().item() <= rtol * theirs.abs().max().item()


def make_asr(path: Path, **encoder_keys: Any) -> str:
    """Write a NeMo CTC ASR whose encoder is that of `section`, with NeMo's own attention, `encoder_keys` over it."""
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    parts = section()
    torch.manual_seed(3)
    vocabulary = ["a", "b"]
    decoder = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
        "feat_in": 32,
        "num_classes": len(vocabulary),
        "vocabulary": vocabulary,
    }
    encoder = parts["encoder"] | {"use_pytorch_sdpa": False} | encoder_keys
    decoder["feat_in"] = encoder["d_model"]
    asr = {
        "sample_rate": builders.SAMPLE_RATE,
        "preprocessor": parts["preprocessor"],
        "encoder": encoder,
        "decoder": decoder,
    }
    EncDecCTCModel(OmegaConf.create(asr)).save_to(str(path))
    return str(path)


def whisper_keys(**overrides: Any) -> dict[str, Any]:
    """A Whisper whose encoder takes 2 s instead of 30."""
    return {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "num_mel_bins": 16,
        "max_source_positions": 100,
    } | overrides


def w2v_bert_keys(**overrides: Any) -> dict[str, Any]:
    """A w2v-BERT of two layers."""
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "feature_projection_input_dim": 32,
        "conv_depthwise_kernel_size": 5,
        "left_max_position_embeddings": 8,
    } | overrides


def make_whisper(folder: Path) -> str:
    """Write a whole Whisper, and no feature extractor."""
    from transformers import WhisperConfig, WhisperModel

    decoder: dict[str, Any] = {
        "decoder_layers": 1,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 48,
        "vocab_size": 64,
    }
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    torch.manual_seed(4)
    WhisperModel(WhisperConfig(**whisper_keys(), **decoder, **ids)).save_pretrained(folder)
    return str(folder)


def make_w2v_bert(folder: Path) -> str:
    """Write a w2v-BERT with its feature extractor."""
    from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

    torch.manual_seed(5)
    Wav2Vec2BertModel(Wav2Vec2BertConfig(**w2v_bert_keys())).save_pretrained(folder)
    SeamlessM4TFeatureExtractor(feature_size=16, num_mel_bins=16).save_pretrained(folder)
    return str(folder)
