"""Small models of each kind that scorers load, at random weights, saved as users have them."""

import json
from pathlib import Path
from typing import Any

import torch


def nemo_ctc(path: Path, sample_rate: int = 16000) -> Path:
    """Write a NeMo character recogniser that listens at ``sample_rate``."""
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    labels = list(" abc")
    config = {
        "sample_rate": sample_rate,
        "labels": labels,
        "preprocessor": _mels(sample_rate),
        "encoder": _jasper(),
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": 8,
            "num_classes": len(labels),
            "vocabulary": labels,
        },
        "decoding": {"strategy": "greedy"},
    }
    torch.manual_seed(0)
    EncDecCTCModel(cfg=OmegaConf.create(config)).save_to(str(path))
    return path


def nemo_transducer(path: Path, *, is_large: bool = False) -> Path:
    """Write a NeMo FastConformer transducer of 32 sentence pieces; ``is_large``: in the shape of FastConformer-L."""
    import sentencepiece
    from nemo.collections.asr.models import EncDecRNNTBPEModel
    from omegaconf import OmegaConf

    folder = path.with_suffix(".tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=32, model_type="bpe", minloglevel=2
    )
    (folder / "vocab.txt").write_text((folder / "tokenizer.vocab").read_text())
    width, layers, mels, inner = (512, 17, 80, 640) if is_large else (16, 1, 8, 16)
    modules = "nemo.collections.asr.modules"
    config = {
        "sample_rate": 16000,
        "preprocessor": {**_mels(16000), "features": mels},
        "tokenizer": {"dir": str(folder), "type": "bpe"},
        "model_defaults": {"enc_hidden": width, "pred_hidden": inner, "joint_hidden": inner},
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder", "feat_in": mels, "n_layers": layers, "d_model": width,
            "subsampling": "dw_striding", "subsampling_factor": 8, "subsampling_conv_channels": width // 2,
            "n_heads": 8 if is_large else 2, "self_attention_model": "rel_pos", "conv_kernel_size": 9,
        },
        "decoder": {
            "_target_": f"{modules}.RNNTDecoder", "normalization_mode": None, "random_state_sampling": False,
            "blank_as_pad": True, "vocab_size": 32,
            "prednet": {"pred_hidden": inner, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": f"{modules}.RNNTJoint", "log_softmax": None, "fuse_loss_wer": False,
            "jointnet": {"joint_hidden": inner, "activation": "relu", "dropout": 0.0},
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 5}},
        "loss": {"loss_name": "default"},
    }  # fmt: skip
    torch.manual_seed(0)
    EncDecRNNTBPEModel(cfg=OmegaConf.create(config)).save_to(str(path))
    return path


def nemo_speakers(path: Path) -> Path:
    """Write a NeMo speaker encoder."""
    from nemo.collections.asr.models import EncDecSpeakerLabelModel
    from omegaconf import OmegaConf

    config = {
        "preprocessor": _mels(16000),
        "encoder": _jasper(),
        "decoder": {
            "_target_": "nemo.collections.asr.modules.SpeakerDecoder",
            "feat_in": 8,
            "num_classes": 4,
            "pool_mode": "xvector",
            "emb_sizes": "16",
        },
        "loss": {"_target_": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss"},
    }
    torch.manual_seed(0)
    EncDecSpeakerLabelModel(cfg=OmegaConf.create(config)).save_to(str(path))
    return path


def hf_whisper(folder: Path, *, is_multilingual: bool = True, sizes: dict[str, int] | None = None) -> Path:
    """Write a Whisper with byte tokens; random weights wide enough that what it hears decides what it writes."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    special = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    special += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    vocab = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = WhisperTokenizer(vocab=vocab, merges=[], pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    ids = {token: vocab[token] for token in special}
    small: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_mel_bins": 8, "max_target_positions": 24}
    config = WhisperConfig(
        vocab_size=len(vocab), decoder_start_token_id=ids["<|startoftranscript|>"], bos_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"], init_std=0.8, **(small | (sizes or {})),
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config)
    settings: dict[str, Any] = {"is_multilingual": is_multilingual, "no_timestamps_token_id": ids["<|notimestamps|>"]}
    if is_multilingual:
        settings["lang_to_id"] = {token: ids[token] for token in ("<|en|>", "<|de|>")}
        settings["task_to_id"] = {"translate": ids["<|translate|>"], "transcribe": ids["<|transcribe|>"]}
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"], eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"], return_timestamps=False,
        max_length=config.max_target_positions, suppress_tokens=list(ids.values())[1:], **settings,
    )  # fmt: skip
    for part in (model, tokenizer, WhisperFeatureExtractor(feature_size=config.num_mel_bins)):
        part.save_pretrained(folder)
    return folder


def hf_wav2vec2(folder: Path, sample_rate: int = 16000, *, has_mask: bool = True) -> Path:
    """Write a wav2vec2 with letters that listens at ``sample_rate``; without a mask, as wav2vec2-base is."""
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    folder.mkdir(parents=True, exist_ok=True)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    config = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(8, 8), conv_stride=(10, 32), conv_kernel=(10, 32), pad_token_id=0,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, initializer_range=0.8,
        feat_extract_norm="layer" if has_mask else "group", do_stable_layer_norm=has_mask,
    )  # fmt: skip
    torch.manual_seed(0)
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=sample_rate, return_attention_mask=has_mask).save_pretrained(folder)
    return folder


class Loudness(torch.nn.Module):
    """An opinion that can be checked by hand: 1 + 4 x the mean of |audio|. Fails for audio above 0.9."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, audio_BS: torch.Tensor) -> torch.Tensor:
        if bool(audio_BS.abs().max() > 0.9):
            raise RuntimeError("too loud")
        return 1 + self.scale * audio_BS.abs().mean(dim=1)


def torchscript_loudness(path: Path) -> Path:
    torch.jit.script(Loudness()).save(str(path))
    return path


def _mels(sample_rate: int) -> dict[str, Any]:
    return {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "features": 8,
        "sample_rate": sample_rate,
        "dither": 0.0,
    }


def _jasper() -> dict[str, Any]:
    layer = {
        "filters": 8,
        "repeat": 1,
        "kernel": [3],
        "stride": [1],
        "dilation": [1],
        "dropout": 0.0,
        "residual": False,
    }
    return {
        "_target_": "nemo.collections.asr.modules.ConvASREncoder",
        "feat_in": 8,
        "activation": "relu",
        "jasper": [layer],
    }
