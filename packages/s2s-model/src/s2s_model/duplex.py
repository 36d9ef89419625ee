"""The duplex speech-to-speech model (SALM-Duplex, Hu et al., Interspeech 2025, arXiv 2505.15670).

At each 80 ms frame a causal LLM reads the sum of the encoded user frame, the agent's previous text token and the
agent's previous codec codes; two heads predict the next text token and the next codes.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `K` codebooks, `C` codes of one, `V` text vocabulary,
`H` hidden, `N` valid frames of a batch.
"""

import logging
from dataclasses import fields
from typing import Any, TypedDict

import torch
from lightning import LightningModule
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from s2s_data.batch import DuplexBatch
from s2s_model.channels import (
    DuplexInputs,
    SpeechTokens,
    agent_turns,
    align_channels,
    delay_codes,
    hide_codes,
    make_inputs,
)
from s2s_model.codec import load_codec
from s2s_model.config import ModelConfig
from s2s_model.generation import FrameModel, Generated, generate_greedy
from s2s_model.llm import load_llm, text_logits
from s2s_model.losses import all_finite, code_loss_sum, frames_per_rank, text_loss_sum
from s2s_model.optim import build_optimizers, freeze
from s2s_model.perception import build_perception, source_sample_rate
from s2s_model.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
MAX_SPREAD_FRAMES = 2  # by how much the streams of an example may differ without a word


class ValOutput(TypedDict):
    """What validation learns of a batch; the losses are sums over `num_frames` valid frames."""

    text_loss: Tensor
    audio_loss: Tensor
    loss: Tensor
    num_frames: Tensor
    text: list[str]
    text_tokens: Tensor  # [B, T] int64
    text_turns: list[list[tuple[float, float, str]]]  # start and end in seconds
    audio: Tensor  # [B, S] float32, what the agent said
    audio_lens: Tensor
    ceiling_audio: Tensor  # [B, S] float32, the reference through the codec
    ceiling_audio_lens: Tensor
    sample_rate: int


class DuplexS2SModel(LightningModule):
    """Listens while it speaks.

    Args:
        config: the `model:` section; unknown keys are refused.
        frame_length_s: seconds of a frame, on which encoder and codec must agree.

    Raises:
        ValueError: a part can't be built, or its rates don't fit; the message quotes both.
    """

    def __init__(self, config: ModelConfig | DictConfig | dict[str, Any], frame_length_s: float = 0.08) -> None:
        super().__init__()
        self.cfg = as_model_config(config)
        self.frame_length_s = frame_length_s
        if self.cfg.lora is not None:
            raise ValueError("model.lora: LoRA isn't supported yet; remove the key")
        if not 0 <= self.cfg.hide_codes_share <= 1:
            raise ValueError(f"model.hide_codes_share is {self.cfg.hide_codes_share}: give a share from 0 to 1")
        self.tokenizer = load_tokenizer(
            self.cfg.tokenizer_path or self.cfg.pretrained_llm,
            pad_token=self.cfg.text_pad_token,
            bos_token=self.cfg.text_bos_token,
            eos_token=self.cfg.text_eos_token,
        )
        self.audio_codec = load_codec(self.cfg.pretrained_audio_codec, key="model.pretrained_audio_codec")
        _check_codec_rate(self.audio_codec.frame_rate, frame_length_s)
        self.speech = SpeechTokens(self.audio_codec.codebook_size)
        self.llm = load_llm(self.cfg.pretrained_llm, pretrained_weights=self.cfg.pretrained_weights)
        hidden_size = self.llm.get_input_embeddings().embedding_dim
        self.perception = build_perception(self.cfg, hidden_size, frame_length_s)
        K, C = self.audio_codec.num_codebooks, self.speech.vocab_size
        # One table for all codebooks: entry c of codebook k lies at k * C + c, and a bag sums the K of a frame.
        self.embed_audio_tokens = nn.EmbeddingBag(K * C, hidden_size, mode="sum")
        nn.init.normal_(self.embed_audio_tokens.weight, std=_embedding_std(self.llm))
        self.audio_head = nn.Linear(self.llm.config.hidden_size, K * C)
        self._code_offsets: Tensor
        self.register_buffer("_code_offsets", torch.arange(K) * C, persistent=False)
        freeze(self, self.cfg.freeze_params, self.cfg.prevent_freeze_params, self.audio_codec.parameter_names())
        self._validation: dict[str, dict[str, Tensor]] = {}

    @property
    def codec_fingerprint(self) -> str:
        """Which codec made the codes that this model learns."""
        return self.audio_codec.fingerprint

    @property
    def source_sample_rate(self) -> int:
        """Hz of the user's audio, as the encoder's features want it."""
        return source_sample_rate(self.perception)

    @property
    def target_sample_rate(self) -> int:
        """Hz of the agent's audio, the codec's."""
        return self.audio_codec.sample_rate

    # --- forward -------------------------------------------------------------------------------------------

    def embed(self, source_BTH: Tensor, text_BT: Tensor, codes_BTK: Tensor) -> Tensor:
        """Sum the three streams of each frame: [B, T, H]."""
        B, T, K = codes_BTK.shape
        speech: Tensor = self.embed_audio_tokens((codes_BTK + self._code_offsets).view(B * T, K)).view(B, T, -1)
        embeds_BTH: Tensor = self.llm.get_input_embeddings()(text_BT)
        return embeds_BTH + speech + source_BTH * self.cfg.duplex_user_channel_weight

    def forward(self, inputs: DuplexInputs) -> Tensor:
        """Hidden states [B, T, H] of the LLM; the heads turn those of valid frames into logits."""
        embeds_BTH = self.embed(inputs.source_BTH, inputs.text_BT, inputs.codes_BTK)
        hidden: Tensor = self.llm.base_model(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state
        return hidden

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of hidden states [*, H]: text [*, V] and codes [*, K, C]."""
        codes = self.audio_head(hidden).unflatten(-1, (-1, self.speech.vocab_size))
        return text_logits(self.llm, hidden), codes

    def encode_source(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the user's audio to one vector a frame [B, T, H]; returns it with the valid frames [B]."""
        source_BTH, frames_B = self.perception(input_signal=audio_BS, input_signal_length=lens_B)
        return source_BTH, frames_B

    def target_codes(self, batch: DuplexBatch) -> tuple[Tensor, Tensor]:
        """The agent's codes [B, T, K] and valid frames [B]: those stored with the data, or encoded here."""
        if "target_codes" in batch:
            return batch["target_codes"], batch["target_code_lens"]
        return self.audio_codec.encode(batch["target_audio"], batch["target_audio_lens"])

    def prepare_inputs(self, batch: DuplexBatch) -> DuplexInputs:
        """Encode both sides of a batch and align them on the frame grid."""
        source_BTH, source_lens = self.encode_source(batch["source_audio"], batch["source_audio_lens"])
        codes_BTK, code_lens = self.target_codes(batch)
        source_BTH, text_BT, codes_BTK, lens_B, spread_B = align_channels(
            source_BTH,
            batch["target_tokens"],
            codes_BTK,
            (source_lens, batch["target_token_lens"], code_lens),
        )
        self._report_spread(spread_B, batch["cut_ids"])
        delayed_BTK = delay_codes(codes_BTK, text_BT, self.speech, self.tokenizer.bos_id, self.tokenizer.eos_id)
        return make_inputs(source_BTH, text_BT, delayed_BTK, lens_B)

    def _report_spread(self, spread_B: Tensor, cut_ids: list[str]) -> None:
        if len(cut_ids) and int(spread_B.max()) > MAX_SPREAD_FRAMES:
            worst = int(spread_B.argmax())
            log.warning(
                "cut %s: user audio, text and codes differ by %d frames; cut to the shortest. Check its durations.",
                cut_ids[worst],
                int(spread_B[worst]),
            )

    def loss_sums(self, inputs: DuplexInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Summed text loss, summed audio loss (mean over codebooks) and the number of valid frames."""
        hidden_NH = self(inputs)[inputs.valid_BT]
        logits_NV, logits_NKC = self.heads(hidden_NH)
        text = text_loss_sum(logits_NV, inputs.text_labels_BT[inputs.valid_BT])
        audio = code_loss_sum(logits_NKC, inputs.code_labels_BTK[inputs.valid_BT])
        return text, audio, inputs.valid_BT.sum()

    def weighted(self, text: Tensor, audio: Tensor) -> Tensor:
        """The training objective of a text and an audio loss."""
        return self.cfg.text_loss_weight * text + self.cfg.audio_loss_weight * audio

    # --- training ------------------------------------------------------------------------------------------

    def training_step(self, batch: DuplexBatch, batch_idx: int) -> Tensor:
        """Loss of one batch, normalised by the valid frames of all data-parallel ranks."""
        inputs = self.prepare_inputs(batch)
        if self.cfg.hide_codes_share:
            inputs = hide_codes(inputs, self.cfg.hide_codes_share, self.speech.delay_id)
        text, audio, num_frames = self.loss_sums(inputs)
        denominator = frames_per_rank(num_frames)
        text, audio = text / denominator, audio / denominator
        loss = self.weighted(text, audio)
        if not all_finite(loss):
            raise FloatingPointError(
                f"train_loss is {loss.item()} at step {self.global_step} on cuts {', '.join(batch['cut_ids'])}: "
                "look at these cuts, or lower model.optimizer.lr"
            )
        # The mean over ranks of sums over the mean frame count is the loss over all frames of all ranks.
        losses = {"train_loss": loss, "train_text_loss": text, "train_audio_loss": audio}
        size = len(batch["cut_ids"])
        self.log_dict({k: v.detach() for k, v in losses.items()}, sync_dist=True, batch_size=size)
        self.log_dict(
            {
                "num_frames": num_frames.float(),
                "padding_share": 1 - num_frames / inputs.valid_BT.numel(),
                "learning_rate": self._learning_rate(),
            },
            batch_size=size,
        )
        return loss

    def _learning_rate(self) -> float:
        optimizer = self.optimizers()
        return float(optimizer.param_groups[0]["lr"]) if not isinstance(optimizer, list) else float("nan")

    def configure_optimizers(self) -> Any:
        """The optimizer and scheduler of `model.optimizer` and `model.lr_scheduler`."""
        return build_optimizers(self, self.cfg.optimizer, self.cfg.lr_scheduler)

    def configure_model(self) -> None:
        """Refuse Lightning's device mesh: weights are replicated, not sharded, so far."""
        if self.device_mesh is not None:
            raise ValueError(
                "trainer.strategy: ModelParallelStrategy isn't supported by this model yet; use ddp, which keeps a "
                "copy of the weights on each GPU"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Let the config, not the checkpoint, say how the schedule goes on: a run may get more steps."""
        of_config = {"decay_steps", *(self.cfg.lr_scheduler or {})}
        for state in checkpoint.get("lr_schedulers", []):
            for key in of_config & state.keys():
                del state[key]

    # --- validation ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Forget the sums of the validation before."""
        self._validation = {}

    @torch.no_grad()
    def validation_step(self, batch: dict[str, DuplexBatch | None], batch_idx: int) -> dict[str, ValOutput]:
        """Losses, generated text and audio of one batch of each data set that has one left."""
        outputs = {}
        for name, dataset_batch in batch.items():
            if dataset_batch is None or not dataset_batch["cut_ids"]:
                continue
            outputs[name] = output = self._validate(dataset_batch)
            sums = self._validation.setdefault(name, {})
            for key, value in (
                ("text", output["text_loss"]),
                ("audio", output["audio_loss"]),
                ("frames", output["num_frames"]),
            ):
                sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value
        return outputs

    def _validate(self, batch: DuplexBatch) -> ValOutput:
        text_loss, audio_loss, num_frames = self.loss_sums(self.prepare_inputs(batch))
        answer = self.offline_inference(batch["source_audio"], batch["source_audio_lens"])
        codes_BTK, code_lens = self.target_codes(batch)
        ceiling_BS, ceiling_lens = self.audio_codec.decode(codes_BTK, code_lens)
        return ValOutput(
            text_loss=text_loss,
            audio_loss=audio_loss,
            loss=self.weighted(text_loss, audio_loss),
            num_frames=num_frames,
            text=answer["text"],
            text_tokens=answer["tokens_text"],
            text_turns=answer["text_turns"],
            audio=answer["audio"],
            audio_lens=answer["audio_len"],
            ceiling_audio=ceiling_BS,
            ceiling_audio_lens=ceiling_lens,
            sample_rate=self.target_sample_rate,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the losses of each data set and over all, exact over ranks."""
        self._log_validation_losses("val")

    def test_step(self, batch: dict[str, DuplexBatch | None], batch_idx: int) -> dict[str, ValOutput]:
        """As `validation_step`."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """As for validation, with `test` in the names."""
        self._log_validation_losses("test")

    def _log_validation_losses(self, prefix: str) -> None:
        total = torch.zeros(3, device=self.device)
        for name in self._all_dataset_names():
            mine = self._validation.get(name, {})
            sums = torch.stack([mine.get(k, total.new_zeros(())).float() for k in ("text", "audio", "frames")])
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(sums)
            total += sums
            self._log_losses(f"_{name}", prefix, sums)
        self._log_losses("", prefix, total)

    def _all_dataset_names(self) -> list[str]:
        names = sorted(self._validation)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(gathered, names)
            names = sorted({name for rank_names in gathered for name in rank_names})
        return names

    def _log_losses(self, suffix: str, prefix: str, sums: Tensor) -> None:
        if not sums[2]:
            return  # nothing was validated: no figure rather than a NaN
        text, audio = sums[0] / sums[2], sums[1] / sums[2]
        self.log(f"{prefix}_loss{suffix}", self.weighted(text, audio))
        self.log(f"{prefix}_text_loss{suffix}", text)
        self.log(f"{prefix}_audio_loss{suffix}", audio)

    # --- generation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, source_BTH: Tensor) -> Generated:
        """Generate text and codes for encoded user frames [B, T, H]."""
        parts = FrameModel(embed=self.embed, body=self.llm.base_model, heads=self.heads)
        K = self.audio_codec.num_codebooks
        return generate_greedy(parts, source_BTH, self.tokenizer.pad_id, self.speech.delay_id, K)

    @torch.no_grad()
    def offline_inference(
        self, input_signal: Tensor, input_signal_lens: Tensor, decode_audio: bool = True
    ) -> dict[str, Any]:
        """Answer whole user recordings [B, S] of `input_signal_lens` [B] samples.

        Returns:
            `text`: B strings; `text_turns`: for each its turns as (start_s, end_s, text);
            `tokens_text` [B, T] and `tokens_audio` [B, T, K] int64, the codes as they were predicted, one frame
            behind the text; `tokens_len` [B]; and, if `decode_audio`, `audio` [B, S'] float32 at the codec's
            rate with `audio_len` [B].
        """
        source_BTH, lens_B = self.encode_source(input_signal, input_signal_lens)
        generated = self.generate(source_BTH)
        turns = [
            self._text_turns(tokens[:length])
            for tokens, length in zip(generated.text_BT.tolist(), lens_B.tolist(), strict=True)
        ]
        answer: dict[str, Any] = {
            "text": [" ".join(text for _, _, text in sample if text) for sample in turns],
            "text_turns": turns,
            "tokens_text": generated.text_BT,
            "tokens_audio": generated.codes_BTK,
            "tokens_len": lens_B,
        }
        if decode_audio:
            silence_K = self.audio_codec.silence_codes().to(input_signal.device)
            codes_BTK = self.speech.replace_control(generated.codes_BTK, silence_K)
            answer["audio"], answer["audio_len"] = self.audio_codec.decode(codes_BTK, lens_B)
        return answer

    def _text_turns(self, tokens_T: list[int]) -> list[tuple[float, float, str]]:
        frames = agent_turns(tokens_T, self.tokenizer.bos_id, self.tokenizer.eos_id)
        return [
            (
                round((start + 1) * self.frame_length_s, 3),  # what frame t predicts stands at frame t + 1
                round((end + 1) * self.frame_length_s, 3),
                self.tokenizer.ids_to_text(tokens_T[start:end]),
            )
            for start, end in frames
        ]


def as_model_config(config: ModelConfig | DictConfig | dict[str, Any]) -> ModelConfig:
    """Check a mapping against `ModelConfig` and resolve its interpolations."""
    if isinstance(config, ModelConfig):
        return config
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), config)
    OmegaConf.resolve(merged)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"model.{missing[0]} isn't set: the config holds ??? or nothing")
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    return ModelConfig(**{f.name: plain[f.name] for f in fields(ModelConfig)})


def _check_codec_rate(frame_rate_hz: float, frame_length_s: float) -> None:
    if abs(frame_rate_hz * frame_length_s - 1) > 1e-6:
        raise ValueError(
            f"model.pretrained_audio_codec makes {frame_rate_hz:g} frames a second, data.frame_length "
            f"{frame_length_s:g} s asks for {1 / frame_length_s:g}: use a codec of that rate"
        )


def _embedding_std(llm: Any) -> float:
    return float(getattr(llm.config, "initializer_range", 0.02))
