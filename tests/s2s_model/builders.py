"""Small real parts: a Llama of two layers, a FastConformer of one, a NeMo codec at random weights."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from s2s_data.batch import DuplexBatch

MODULES = "nemo.collections.tts.modules.audio_codec_modules"
LOSSES = "nemo.collections.tts.losses.audio_codec_loss"
VOCAB_SIZE, PAD, BOS, EOS = 64, 3, 1, 2
SAMPLE_RATE = 16000
CODEC_RATE = 22050


def make_llm(folder: Path, **tokens: str) -> str:
    """Write a tiny Llama config and a word-level tokenizer; `tokens` replaces its special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    vocab = {"<unk>": 0, "<s>": BOS, "</s>": EOS, "<pad>": PAD} | {f"w{i}": i for i in range(4, VOCAB_SIZE)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | tokens
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    return str(folder)


def codec_config(
    sample_rate: int = CODEC_RATE, rates: tuple[int, ...] = (2, 3, 6, 7, 7), num_codebooks: int = 2
) -> Any:
    """A NeMo codec of a few thousand parameters, codebooks of 20 entries."""
    samples_per_frame = 1
    for rate in rates:
        samples_per_frame *= rate
    return OmegaConf.create(
        {
            "target": "nemo.collections.tts.models.AudioCodecModel",
            "sample_rate": sample_rate,
            "samples_per_frame": samples_per_frame,
            "max_epochs": 1,
            "steps_per_epoch": 1,
            "commit_loss_scale": 0.0,
            "loss_resolutions": [[256, 64, 256]],
            "mel_loss_dims": [20],
            "audio_encoder": {
                "_target_": f"{MODULES}.HiFiGANEncoder",
                "down_sample_rates": list(rates),
                "encoded_dim": 2 * num_codebooks,
                "base_channels": 4,
                "resblock_kernel_sizes": [3],
                "resblock_dilation_sizes": [1],
            },
            "audio_decoder": {
                "_target_": f"{MODULES}.HiFiGANDecoder",
                "up_sample_rates": list(reversed(rates)),
                "input_dim": 2 * num_codebooks,
                "base_channels": 64,
                "resblock_kernel_sizes": [3],
                "resblock_dilation_sizes": [1],
            },
            "vector_quantizer": {
                "_target_": f"{MODULES}.GroupFiniteScalarQuantizer",
                "num_groups": num_codebooks,
                "num_levels_per_group": [5, 4],
            },
            # NeMo's own model deletes the discriminator, so there has to be one.
            "discriminator": {
                "_target_": f"{MODULES}.MultiResolutionDiscriminatorSTFT",
                "resolutions": [[256, 64, 256]],
                "stft_bands": [[0.0, 1.0]],
            },
            "generator_loss": {"_target_": f"{LOSSES}.GeneratorSquaredLoss"},
            "discriminator_loss": {"_target_": f"{LOSSES}.DiscriminatorSquaredLoss"},
            "optim": {"_target_": "torch.optim.Adam", "lr": 1e-3},
        }
    )


def make_codec(path: Path, **kwargs: Any) -> str:
    """Write a random NeMo codec to `path`."""
    from nemo.collections.tts.models import AudioCodecModel

    torch.manual_seed(1)
    with_sound(AudioCodecModel(codec_config(**kwargs))).save_to(str(path))
    return str(path)


def with_sound(codec: Any) -> Any:
    """Scale a random NeMo codec so that codes differ from frame to frame, and audio with the codes."""
    keep_sound_alive(codec.audio_decoder, 2.3)
    keep_sound_alive(codec.audio_encoder, 1.0)
    with torch.no_grad():
        codec.audio_encoder.post_conv.conv.parametrizations.weight.original0.mul_(3e3)
    return codec


def keep_sound_alive(model: Any, gain: float) -> None:
    """Scale random convolutions by `gain` and drop their biases, behind which the input all but vanishes."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.zero_()
            elif name.endswith(("weight.original0", "conv1.weight", "conv2.weight", "conv_t1.weight")):
                value.mul_(gain)


def conformer(feat_in: int, subsampling_factor: int) -> dict[str, Any]:
    """A causal FastConformer of one layer."""
    return {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": feat_in,
        "feat_out": -1,
        "n_layers": 1,
        "d_model": 32,
        "subsampling": "dw_striding",
        "subsampling_factor": subsampling_factor,
        "subsampling_conv_channels": 8,
        "causal_downsampling": True,
        "self_attention_model": "rel_pos",
        "n_heads": 2,
        "att_context_size": [20, 0],
        "att_context_style": "chunked_limited",
        "conv_kernel_size": 5,
        "conv_norm_type": "layer_norm",
        "conv_context_size": "causal",
        "dropout": 0.0,
        "dropout_pre_encoder": 0.0,
        "dropout_emb": 0.0,
        "dropout_att": 0.0,
    }


def perception() -> dict[str, Any]:
    """The `model.perception` section."""
    return {
        "target": "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule",
        "output_dim": 32,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "features": 16,
            "normalize": "NA",
            "dither": 0.0,
            "pad_to": 0,
        },
        "encoder": conformer(16, 8),
        "modality_adapter": conformer(32, 1),
    }


def model_config(llm: str, codec: str, **overrides: Any) -> dict[str, Any]:
    """A whole `model` section."""
    return {
        "pretrained_llm": llm,
        "pretrained_audio_codec": codec,
        "pretrained_asr": "none",
        "scoring_asr": "none",
        "pretrained_weights": False,
        "audio_loss_weight": 4,
        "text_loss_weight": 3,
        "perception": perception(),
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": 3e-3},
    } | overrides


def make_batch(frames: tuple[int, ...], codec_rate: int = CODEC_RATE, seed: int = 0) -> DuplexBatch:
    """Noise dialogues of `frames` frames each, with one agent turn in the middle."""
    generator = torch.Generator().manual_seed(seed)
    B, T = len(frames), max(frames)

    def audio(rate_hz: int) -> Tensor:
        size = round(rate_hz * 0.08)
        out = torch.zeros(B, T * size)
        for b, n in enumerate(frames):
            out[b, : n * size] = torch.randn(n * size, generator=generator) * 0.1
        return out

    tokens = torch.full((B, T), PAD)
    for b, n in enumerate(frames):
        start, end = n // 4, n // 4 + n // 2
        tokens[b, start] = BOS
        tokens[b, start + 1 : start + 4] = torch.randint(4, VOCAB_SIZE, (3,), generator=generator)
        tokens[b, end] = EOS
    lens = torch.tensor(frames)
    return DuplexBatch(
        source_audio=audio(SAMPLE_RATE),
        source_audio_lens=lens * 1280,
        target_audio=audio(codec_rate),
        target_audio_lens=lens * round(codec_rate * 0.08),
        target_tokens=tokens,
        target_token_lens=lens,
        source_tokens=tokens,
        source_token_lens=lens,
        target_texts=["w4"] * B,
        source_texts=["w4"] * B,
        cut_ids=[f"cut-{b}" for b in range(B)],
        turns=[[] for _ in range(B)],
        num_dropped_tokens=torch.zeros(B, dtype=torch.long),
    )


def slice_batch(batch: DuplexBatch, b: int) -> DuplexBatch:
    """The dialogue `b` alone, without padding."""
    one: dict[str, Any] = {}
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            one[key] = value[b : b + 1]  # type: ignore[index]
            continue
        one[key] = value[b : b + 1]
        if f"{key}_lens" in batch:
            one[key] = one[key][:, : int(batch[f"{key}_lens"][b])]  # type: ignore[literal-required]
    for key in ("target_tokens", "source_tokens"):
        one[key] = one[key][:, : int(batch["target_token_lens"][b])]
    return one  # type: ignore[return-value]
