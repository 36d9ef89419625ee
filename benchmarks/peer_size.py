"""What both models of a benchmark are made of: a peer-sized LLM, encoder and codec at random weights, and batches.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `K` codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.s2s_model.builders import MODULES, codec_config, conformer, keep_sound_alive

FRAME_S = 0.08
SOURCE_HZ, CODEC_HZ = 16000, 22050
SOURCE_SAMPLES, CODEC_SAMPLES = 1280, 1764  # of a frame
CODEBOOKS = 8
UNK, BOS, EOS, PAD = 0, 1, 2, 3
# Our fastest settings on one GPU; of activations what is cheaper than attention and an MLP's products is recomputed.
FAST = {"compile": True, "cuda_graphs": True, "activation_memory_budget": 0.4, "encoder_memory_budget": 0.5}
FAST_OPTIMIZER = {"_target_": "s2s_model.adamw.AdamW"}
LEARNING_RATE = 0.0  # the optimizer does all its work, and every step sees the same weights: losses compare


@dataclass(frozen=True)
class Size:
    """Shapes of the parts, and the cases that are measured at that size."""

    llm: dict[str, Any]
    encoder: tuple[int, int, int]  # width, layers, heads
    adapter_layers: int
    codec_channels: tuple[int, int]  # of the encoder, of the decoder
    train: tuple[tuple[int, float], ...]  # dialogues, seconds of each
    best: tuple[int, float]  # ours alone
    long: tuple[int, float]
    bins_s: tuple[float, ...]  # buckets of the padded mix, by their longest
    shortest_s: float
    batch_duration_s: float  # of the mix: dialogues times the bucket's longest
    agree: tuple[int, float]
    decode: tuple[int, ...]  # dialogues
    decode_s: float
    validation: tuple[int, int]  # batches, dialogues of each, of `decode_s` seconds
    session_s: float


TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}
TINYLLAMA: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
SIZES = {
    "tiny": Size(
        TINY, (64, 2, 4), 1, (8, 64), train=((1, 2.0), (2, 2.0)), best=(4, 2.0), long=(1, 8.0),
        bins_s=(1.0, 2.0), shortest_s=0.6, batch_duration_s=4.0, agree=(2, 2.0), decode=(1, 2), decode_s=2.0,
        validation=(2, 2), session_s=4.0,
    ),
    "tinyllama": Size(
        TINYLLAMA, (512, 17, 8), 2, (48, 864), train=((4, 20.0), (16, 20.0), (32, 20.0)), best=(96, 20.0),
        long=(2, 300.0), bins_s=(8.72, 12.48, 16.24, 20.0), shortest_s=5.04, batch_duration_s=320.0, agree=(2, 8.0),
        decode=(1, 8, 32), decode_s=20.0, validation=(8, 8), session_s=600.0,
    ),
}  # fmt: skip


# --- parts -------------------------------------------------------------------------------------------------------


def write_parts(folder: Path, size: Size) -> None:
    """Write the LLM's config, a tokenizer of all its words, and the codec to `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    llm = folder / "llm"
    LlamaConfig(
        **size.llm, max_position_embeddings=8192, architectures=["LlamaForCausalLM"], pad_token_id=PAD,
        tie_word_embeddings=False,
    ).save_pretrained(llm)  # fmt: skip
    vocab = {"<unk>": UNK, "<s>": BOS, "</s>": EOS, "<pad>": PAD}
    vocab |= {f"w{i}": i for i in range(len(vocab), size.llm["vocab_size"])}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(llm)
    _write_codec(folder / "codec.nemo", size)


def write_llm_weights(folder: Path, device: str) -> None:
    """Put random weights in bfloat16 beside the LLM's config, drawn on a device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder / "llm")
    with torch.device(device):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder / "llm")


def _write_codec(path: Path, size: Size) -> None:
    """A HiFiGAN codec of 12.5 frames a second and 8 codebooks of 2,016 codes."""
    from nemo.collections.tts.models import AudioCodecModel

    config = codec_config(num_codebooks=CODEBOOKS)
    encoder_channels, decoder_channels = size.codec_channels
    for part, channels in (("audio_encoder", encoder_channels), ("audio_decoder", decoder_channels)):
        config[part].base_channels = channels
        for small in ("resblock_kernel_sizes", "resblock_dilation_sizes"):
            del config[part][small]  # NeMo's own: kernels of 3, 7 and 11
    config.audio_encoder.resblock_dilation_sizes = [1]
    config.audio_encoder.encoded_dim = config.audio_decoder.input_dim = 4 * CODEBOOKS
    config.audio_decoder.output_activation = "tanh"
    config.vector_quantizer = {
        "_target_": f"{MODULES}.GroupFiniteScalarQuantizer",
        "num_groups": CODEBOOKS,
        "num_levels_per_group": [8, 7, 6, 6],
    }
    torch.manual_seed(1)
    codec = AudioCodecModel(config)
    _spread_codes(codec)
    codec.save_to(str(path))


@torch.no_grad()
def _spread_codes(codec: Any) -> None:
    """Scale the encoder's last layer so that its output varies by 1: at random weights it all but vanishes, and all
    frames would have one code."""
    keep_sound_alive(codec.audio_encoder, 1.0)
    audio_BS = torch.randn(1, 12 * CODEC_SAMPLES, generator=torch.Generator().manual_seed(2)) * 0.1
    encoded, _ = codec.audio_encoder(audio=audio_BS, audio_len=torch.tensor([audio_BS.shape[1]]))
    codec.audio_encoder.post_conv.conv.parametrizations.weight.original0.div_(encoded.std())


def model_section(folder: Path, size: Size, optimizer: dict[str, Any]) -> dict[str, Any]:
    """The `model` section of what `write_parts` wrote, with NeMo's keys; both models are built from it."""
    width, layers, heads = size.encoder
    return {
        "pretrained_llm": str(folder / "llm"),
        "pretrained_audio_codec": str(folder / "codec.nemo"),
        "pretrained_asr": "none",
        "scoring_asr": "none",
        "pretrained_weights": False,
        "freeze_params": ["^audio_codec\\..+$"],
        "audio_loss_weight": 4,
        "text_loss_weight": 3,
        "perception": {
            "target": "nemo.collections.speechlm2.modules.perception.AudioPerceptionModule",
            "output_dim": size.llm["hidden_size"],
            "preprocessor": {
                "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
                "sample_rate": SOURCE_HZ, "features": 80, "n_fft": 512, "window_size": 0.025, "window_stride": 0.01,
                "window": "hann", "normalize": "NA", "log": True, "frame_splicing": 1, "pad_to": 0, "pad_value": 0.0,
                "dither": 0.0,  # random noise, which would keep losses from agreeing
            },
            "encoder": _conformer(80, width, layers, heads, 8, [70, 0]),
            "modality_adapter": _conformer(width, width, size.adapter_layers, heads, 1, [70, 1]),
        },
        "optimizer": {"_target_": "torch.optim.AdamW", "lr": LEARNING_RATE, "betas": [0.9, 0.98], "weight_decay": 0}
        | optimizer,
    }  # fmt: skip


def _conformer(
    feat_in: int, width: int, layers: int, heads: int, subsampling: int, context: list[int]
) -> dict[str, Any]:
    """A causal FastConformer."""
    return conformer(feat_in, subsampling) | {
        "n_layers": layers, "d_model": width, "n_heads": heads, "subsampling_conv_channels": 256,
        "ff_expansion_factor": 4, "att_context_size": context, "conv_kernel_size": 9, "xscaling": True,
        "untie_biases": True, "pos_emb_max_len": 5000,
    }  # fmt: skip


# --- batches -----------------------------------------------------------------------------------------------------


def even_batch(size: Size, num_dialogues: int, duration_s: float) -> dict[str, Any]:
    """Dialogues of noise, all of one length, with one turn of the agent's each."""
    return mixed_batch(size, [duration_s] * num_dialogues)


def mixed_batch(size: Size, durations_s: Sequence[float]) -> dict[str, Any]:
    """As `even_batch`, each dialogue of its own length and padded to the longest, on the host."""
    generator = torch.Generator().manual_seed(len(durations_s))
    frames = [round(duration_s / FRAME_S) for duration_s in durations_s]
    B, T = len(frames), max(frames)
    lens_B = torch.tensor(frames)
    tokens_BT = torch.full((B, T), PAD)
    for b, n in enumerate(frames):
        begin, end = n // 4, n // 4 + n // 2
        spoken = torch.randint(PAD + 1, size.llm["vocab_size"], (n // 4 - 1,), generator=generator)
        tokens_BT[b, begin], tokens_BT[b, end] = BOS, EOS
        tokens_BT[b, begin + 1 : begin + 1 + len(spoken)] = spoken
    return {
        "source_audio": _noise(frames, SOURCE_SAMPLES, generator),
        "source_audio_lens": lens_B * SOURCE_SAMPLES,
        "target_audio": _noise(frames, CODEC_SAMPLES, generator),
        "target_audio_lens": lens_B * CODEC_SAMPLES,
        "target_tokens": tokens_BT,
        "target_token_lens": lens_B,
        "source_tokens": tokens_BT.clone(),
        "source_token_lens": lens_B,
        "target_texts": ["w4"] * B,
        "source_texts": ["w4"] * B,
        "cut_ids": [f"cut-{b}" for b in range(B)],
        "turns": [[] for _ in range(B)],
        "num_dropped_tokens": torch.zeros(B, dtype=torch.long),
    }


def _noise(frames: Sequence[int], samples_per_frame: int, generator: torch.Generator) -> Tensor:
    audio_BS = torch.zeros(len(frames), max(frames) * samples_per_frame)
    for row_S, n in zip(audio_BS, frames, strict=True):
        row_S[: n * samples_per_frame] = torch.randn(n * samples_per_frame, generator=generator) * 0.1
    return audio_BS


def mix_of(size: Size) -> list[dict[str, Any]]:
    """A batch of each bucket: durations drawn evenly from the bucket's, as many as fill `batch_duration_s`."""
    generator = torch.Generator().manual_seed(7)
    batches, shortest_s = [], size.shortest_s
    for longest_s in size.bins_s:
        drawn = torch.rand(int(size.batch_duration_s / longest_s), generator=generator)
        durations_s = shortest_s + drawn * (longest_s - shortest_s)
        batches.append(mixed_batch(size, [round(float(d) / FRAME_S) * FRAME_S for d in durations_s]))
        shortest_s = longest_s
    return batches


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A copy of `batch` with its tensors on `device`."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def with_codes(batch: dict[str, Any], codes: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The batch with stored codes [B, T, K] and frames [B] in place of the agent's audio."""
    kept = {key: value for key, value in batch.items() if not key.startswith("target_audio")}
    device = batch["target_tokens"].device
    return kept | {"target_codes": codes[0].to(device), "target_code_lens": codes[1].to(device)}


def audio_s(batch: dict[str, Any]) -> float:
    """Seconds of real dialogue, padding not counted."""
    return float(batch["source_audio_lens"].sum()) / SOURCE_HZ
