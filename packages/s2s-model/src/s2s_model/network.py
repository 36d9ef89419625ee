"""The network (SALM-Duplex, Hu et al., Interspeech 2025, arXiv 2505.15670).

At each 80 ms frame a causal LLM reads the sum of the encoded user frame, the agent's previous text token and the
agent's previous codec codes; two heads predict the next text token and the next codes. A third, if asked for,
writes what the user says.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `K` codebooks, `C` codes of one, `V` text vocabulary,
`H` hidden, `N` valid frames of a batch.
"""

import copy
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from s2s_data.batch import DuplexBatch, first_text_only
from s2s_model.channels import DuplexInputs, SpeechTokens, align_channels, delay_codes, hide_codes, make_inputs
from s2s_model.codecs import check_codec_rate, load_codec
from s2s_model.config import ModelConfig
from s2s_model.frame_statistics import FrameStatistics, frame_statistics
from s2s_model.freezing import freeze
from s2s_model.generation import check_cache
from s2s_model.graphed_step import graphed_losses, make_graphs
from s2s_model.head_loss import can_reduce, let_reduce, linear_cross_entropy
from s2s_model.llm import (
    exact_positions,
    hidden_size,
    llm_blocks,
    llm_body,
    load_llm,
    logit_scale_and_cap,
    text_config,
    text_logits,
    whole_rows,
)
from s2s_model.lora import TRAINED, inject_lora, load_lora
from s2s_model.losses import LossSums, code_loss_sum, codebook_weights, text_loss_sum, token_weights
from s2s_model.perception import build_perception
from s2s_model.sampling import check_sampling
from s2s_model.text_delays import delay_eos, shift_text
from s2s_model.tokenizer import load_tokenizer
from s2s_parallel.loss import whole
from s2s_parallel.parts import ModelParts
from s2s_parallel.training_graphs import TrainingGraphs

log = logging.getLogger(__name__)
MAX_SPREAD_FRAMES = 2  # by how much the streams of an example may differ without a word


class DuplexNetwork(nn.Module):
    """Perception, LLM and codec on one grid of frames, and the losses of a batch.

    Args:
        config: the `model:` section; unknown keys are refused.
        frame_length_s: seconds of a frame, on which encoder and codec must agree.
        llm_dtype: in which the LLM's weights are loaded, if the network will be cast to it: files in that dtype load
            ten times faster than into float32.

    Raises:
        ValueError: a part can't be built, or its rates don't fit; the message quotes both.
    """

    def __init__(
        self,
        config: ModelConfig | DictConfig | dict[str, Any],
        frame_length_s: float = 0.08,
        llm_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.cfg = as_model_config(config)
        self.frame_length_s = frame_length_s
        _check_figures(self.cfg)
        self.tokenizer = load_tokenizer(
            self.cfg.tokenizer_path or self.cfg.pretrained_llm,
            pad_token=self.cfg.text_pad_token,
            bos_token=self.cfg.text_bos_token,
            eos_token=self.cfg.text_eos_token,
            key="model.tokenizer_path" if self.cfg.tokenizer_path else "model.pretrained_llm",
        )
        self.audio_codec = load_codec(
            self.cfg.pretrained_audio_codec,
            key="model.pretrained_audio_codec",
            num_codebooks=self.cfg.audio_codec_num_codebooks,
            precision=self.cfg.audio_codec_precision,
            precision_key="model.audio_codec_precision",
        )
        check_codec_rate(self.audio_codec, frame_length_s)
        self.speech = SpeechTokens(self.audio_codec.codebook_size)
        self._build_llm(llm_dtype)
        self.perception = build_perception(self.cfg, hidden_size(self.llm), frame_length_s)
        self._build_speech_channel()
        if self.cfg.start_from_text:
            self._silence_inputs()
        for head in self._heads:
            let_reduce(head)
        self.compiles_losses = False
        self._graphs: TrainingGraphs | None = None
        self._spreads: list[tuple[Tensor, list[str]]] = []  # read when the host waits for the device anyway
        freeze(
            self,
            self.cfg.freeze_params,
            self._kept_from_freezing(),
            self.audio_codec.parameter_names(),
            reopen="llm." if self.cfg.lora is not None else None,
        )
        self.train()  # an LLM loaded with its weights comes in eval mode

    def _build_llm(self, dtype: torch.dtype | None = None) -> None:
        self.llm = load_llm(
            self.cfg.pretrained_llm,
            pretrained_weights=self.cfg.pretrained_weights,
            attn_implementation=self.cfg.attn_implementation,
            dtype=dtype,
        )
        check_cache(self.llm)
        self.tokenizer.check_fits(self.llm.get_input_embeddings().weight.shape[0])
        if self.cfg.predict_user_text:
            self.asr_head = copy.deepcopy(self.llm.get_output_embeddings())
            self.embed_asr_tokens = copy.deepcopy(self.llm.get_input_embeddings())
        if self.cfg.lora is not None:
            inject_lora(self.llm, self.cfg.lora)
            if self.cfg.pretrained_lora is not None:
                load_lora(self.llm, self.cfg.pretrained_lora)

    def _build_speech_channel(self) -> None:
        K, C, H = self.audio_codec.num_codebooks, self.speech.vocab_size, hidden_size(self.llm)
        # One table for all codebooks: entry c of codebook k lies at k * C + c, and a bag sums the K of a frame.
        self.embed_audio_tokens = nn.EmbeddingBag(K * C, H, mode="sum")
        nn.init.normal_(self.embed_audio_tokens.weight, std=_embedding_std(self.llm))
        self.audio_head = nn.Linear(H, K * C)
        self._code_offsets: Tensor
        self.register_buffer("_code_offsets", torch.arange(K) * C, persistent=False)
        self._codebook_weights = codebook_weights(self.cfg.codebook_loss_weight, K)

    @torch.no_grad()
    def _silence_inputs(self) -> None:
        """Let what is heard and said add nothing to the LLM's inputs, until training lets it."""
        if not isinstance(self.perception.proj, nn.Linear):
            raise ValueError(
                "model.start_from_text: nothing projects the encoder's frames behind the modality_adapter; set it to "
                "false, or give model.perception an adapter that leaves that to us, such as a Conformer"
            )
        for weight in (self.embed_audio_tokens.weight, *self.perception.proj.parameters()):
            weight.zero_()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; parts that are frozen as a whole stay in eval mode: no dropout, no new batch statistics."""
        super().train(mode)
        for part in (self.llm, self.perception, *self.perception.children()):
            parameters = list(part.parameters())
            if mode and parameters and not any(p.requires_grad for p in parameters):
                part.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        with exact_positions(self.llm):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _kept_from_freezing(self) -> list[str]:
        adapters = [TRAINED] if self.cfg.lora is not None else []
        return [*self.cfg.prevent_freeze_params, *adapters]

    @property
    def codec_fingerprint(self) -> str:
        """Which codec made the codes that this model learns."""
        return self.audio_codec.fingerprint

    @property
    def source_sample_rate(self) -> int:
        """Hz of the user's audio, as the encoder's features want it."""
        return int(self.perception.sample_rate)

    @property
    def target_sample_rate(self) -> int:
        """Hz of the agent's audio, the codec's."""
        return self.audio_codec.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self._code_offsets.device

    @property
    def _heads(self) -> list[nn.Module]:
        asr_head = [self.asr_head] if self.cfg.predict_user_text else []
        return [self.llm.get_output_embeddings(), self.audio_head, *asr_head]

    @property
    def _text_ids(self) -> tuple[int, int, int]:
        return self.tokenizer.pad_id, self.tokenizer.bos_id, self.tokenizer.eos_id

    # --- forward -------------------------------------------------------------------------------------------

    def embed(
        self,
        source_BTH: Tensor,
        text_BT: Tensor,
        codes_BTK: Tensor,
        user_text_BT: Tensor | None = None,
        sounds_BT: Tensor | None = None,
    ) -> Tensor:
        """Sum the streams of each frame: [B, T, H]; where `sounds_BT` is False, those of text alone."""
        B, T, K = codes_BTK.shape
        speech: Tensor = self.embed_audio_tokens((codes_BTK + self._code_offsets).view(B * T, K)).view(B, T, -1)
        embeds_BTH: Tensor = self.llm.get_input_embeddings()(text_BT) * self.cfg.duplex_text_channel_weight
        sound_BTH = speech + source_BTH * self.cfg.duplex_user_channel_weight
        if sounds_BT is not None:
            sound_BTH = torch.where(sounds_BT[..., None], sound_BTH, 0)
        embeds_BTH = embeds_BTH + sound_BTH
        if user_text_BT is not None:
            embeds_BTH = embeds_BTH + self.embed_asr_tokens(user_text_BT) * self.cfg.duplex_asr_text_weight
        return embeds_BTH

    def hidden_states(self, inputs: DuplexInputs) -> Tensor:
        """Hidden states [B, T, H] of the LLM; the heads turn those of valid frames into logits."""
        embeds_BTH = self.embed(
            inputs.source_BTH, inputs.text_BT, inputs.codes_BTK, inputs.user_text_BT, inputs.sounds_BT
        )
        with whole_rows():
            hidden: Tensor = llm_body(self.llm)(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state
        return hidden

    def heads(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits of hidden states [*, H]: text [*, V], codes [*, K, C] and, if predicted, the user's text [*, V]."""
        text, codes, user_text = self._logits(hidden)
        codes = whole(codes).unflatten(-1, (-1, self.speech.vocab_size))
        return whole(text), codes, None if user_text is None else whole(user_text)

    def _logits(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `heads`, with codes [*, K * C]; under tensor parallelism each process has its share of the last."""
        user_text = text_logits(self.llm, hidden, self.asr_head) if self.cfg.predict_user_text else None
        return text_logits(self.llm, hidden), self.audio_head(hidden), user_text

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
        """Encode both sides of a batch, align them on the frame grid and move the channels by their delays."""
        source_BTH, source_lens = self.encode_source(batch["source_audio"], batch["source_audio_lens"])
        codes_BTK, code_lens = self.target_codes(batch)
        inputs, spread_B = self.align(
            source_BTH,
            batch["target_tokens"],
            codes_BTK,
            (source_lens, batch["target_token_lens"], code_lens),
            batch["source_tokens"] if self.cfg.predict_user_text else None,
            batch.get("text_only"),
        )
        self._spreads.append((spread_B, batch["cut_ids"]))
        return inputs

    def align(
        self,
        source_BTH: Tensor,
        tokens_BT: Tensor,
        codes_BTK: Tensor,
        lens: tuple[Tensor, Tensor, Tensor],
        user_tokens_BT: Tensor | None,
        text_only_B: Tensor | None = None,
    ) -> tuple[DuplexInputs, Tensor]:
        """What the LLM reads and learns of three streams of `lens` frames, and by how many frames [B] they differ.

        Of dialogues that are text alone it reads both texts and learns the agent's: no sound tells what the user says.
        """
        source_BTH, text_BT, codes_BTK, lens_B, spread_B = align_channels(source_BTH, tokens_BT, codes_BTK, lens)
        delayed_BTK = delay_codes(
            codes_BTK,
            text_BT,
            self.speech,
            self.tokenizer.bos_id,
            self.tokenizer.eos_id,
            self.cfg.delay_speech_channel_by,
        )
        by = self.cfg.delay_text_channel_by - self.cfg.advance_text_channel_by
        text_BT = shift_text(text_BT, lens_B, by, self._text_ids)
        text_BT = delay_eos(text_BT, lens_B, self.cfg.delay_text_eos_by, self._text_ids)
        user_text_BT = None
        if user_tokens_BT is not None:
            user_tokens_BT = user_tokens_BT[:, : text_BT.shape[1]]
            user_text_BT = shift_text(user_tokens_BT, lens_B, self.cfg.delay_source_text_by, self._text_ids)
        return make_inputs(source_BTH, text_BT, delayed_BTK, lens_B, user_text_BT, text_only_B), spread_B

    def take_spreads(self) -> list[tuple[Tensor, list[str]]]:
        """By how much the streams of cuts differ that were prepared since the last call: [B] frames of each batch."""
        spreads = [(spread_B, cut_ids) for spread_B, cut_ids in self._spreads if len(cut_ids)]
        self._spreads = []
        return spreads

    def report_spreads(self) -> None:
        """Warn of cuts whose streams differ too much, of those prepared since the last call. Waits for the device."""
        spreads = self.take_spreads()
        if spreads:
            self.warn_of_spreads(torch.stack([spread_B.max() for spread_B, _ in spreads]).tolist(), spreads)

    def warn_of_spreads(self, most: list[float], spreads: list[tuple[Tensor, list[str]]]) -> None:
        """As `report_spreads`, where the largest of each batch is known."""
        for largest, (spread_B, cut_ids) in zip(most, spreads, strict=True):
            if largest > MAX_SPREAD_FRAMES:
                log.warning(
                    "cut %s: user audio, text and codes differ by %d frames; cut to the shortest. Check its durations.",
                    cut_ids[int(spread_B.argmax())],
                    int(largest),
                )

    def loss_sums(self, inputs: DuplexInputs) -> LossSums:
        """The losses of the valid frames, summed, and their number."""
        hidden_BTH = self.hidden_states(inputs)
        if all(can_reduce(head) for head in self._heads):
            return self._reduced_loss_sums(hidden_BTH.flatten(0, 1), inputs)
        return self._loss_sums(self._logits(hidden_BTH[inputs.valid_BT]), inputs)

    def _reduced_loss_sums(self, hidden_NH: Tensor, inputs: DuplexInputs) -> LossSums:
        """As `_loss_sums`, of all frames' hidden states, without logits and without a wait for the device."""
        valid_N1, sounds_N1 = (
            frames_BT.flatten()[:, None].float() for frames_BT in (inputs.valid_BT, _sounding(inputs))
        )  # fmt: skip
        codes_NK = inputs.code_labels_BTK.flatten(0, 1)
        of_codes = partial(
            linear_cross_entropy,
            labels_NK=codes_NK,
            weights_NK=sounds_N1 * self._weights_of_codebooks(codes_NK.device),
            compiled=self.compiles_losses,
        )
        user_text = None
        if self.cfg.predict_user_text:
            assert inputs.user_text_labels_BT is not None
            user_text = self._reduced_text_loss(self.asr_head, hidden_NH, inputs.user_text_labels_BT, sounds_N1)
        return LossSums(
            text=self._reduced_text_loss(self.llm.get_output_embeddings(), hidden_NH, inputs.text_labels_BT, valid_N1),
            audio=self.audio_head(hidden_NH, of_codes),
            num_frames=inputs.valid_BT.sum(),
            user_text=user_text,
        )

    def _weights_of_codebooks(self, device: torch.device) -> Tensor:
        self._codebook_weights = self._codebook_weights.to(device)  # moved once, and never cast
        return self._codebook_weights

    def _reduced_text_loss(self, head: nn.Module, hidden_NH: Tensor, labels_BT: Tensor, valid_N1: Tensor) -> Tensor:
        labels_N = labels_BT.flatten()
        weights_N = token_weights(labels_N, self.cfg.token_loss_weight, *self._text_ids)
        scale, cap = logit_scale_and_cap(self.llm)
        reduce = partial(
            linear_cross_entropy,
            labels_NK=labels_N[:, None],
            weights_NK=valid_N1 if weights_N is None else valid_N1 * weights_N[:, None],
            scale=scale,
            cap=cap,
            compiled=self.compiles_losses,
        )
        loss: Tensor = head(hidden_NH, reduce)
        return loss

    def loss_and_statistics(self, batch: DuplexBatch) -> tuple[LossSums, FrameStatistics]:
        """The losses of a batch, and how well each of its dialogues is predicted.

        Raises:
            ValueError: one of them is text alone: there is nothing to listen to.
        """
        if (cut := first_text_only(batch)) is not None:
            raise ValueError(f"cut {cut} is text alone (text_only), and a validation listens and answers: take it out")
        inputs = self.prepare_inputs(batch)
        logits = self._logits(self.hidden_states(inputs)[inputs.valid_BT])
        statistics = frame_statistics(logits[0], logits[1], inputs, self.tokenizer.pad_id)
        return self._loss_sums(logits, inputs), statistics

    def _loss_sums(self, logits: tuple[Tensor, Tensor, Tensor | None], inputs: DuplexInputs) -> LossSums:
        logits_NV, code_logits, user_logits_NV = logits
        valid_BT = inputs.valid_BT
        sounds_N = None if inputs.sounds_BT is None else inputs.sounds_BT[valid_BT]
        user_text = None
        if user_logits_NV is not None:
            assert inputs.user_text_labels_BT is not None
            user_text = self._text_loss(user_logits_NV, inputs.user_text_labels_BT[valid_BT], sounds_N)
        return LossSums(
            text=self._text_loss(logits_NV, inputs.text_labels_BT[valid_BT]),
            audio=code_loss_sum(
                code_logits,
                inputs.code_labels_BTK[valid_BT],
                self._weights_of_codebooks(code_logits.device),
                sounds_N,
            ),
            num_frames=valid_BT.sum(),
            user_text=user_text,
        )

    def _text_loss(self, logits_NV: Tensor, labels_N: Tensor, counts_N: Tensor | None = None) -> Tensor:
        weights_N = token_weights(labels_N, self.cfg.token_loss_weight, *self._text_ids)
        if counts_N is not None:
            weights_N = counts_N.float() if weights_N is None else weights_N * counts_N
        return text_loss_sum(logits_NV, labels_N, weights_N)

    def forward(self, batch: DuplexBatch) -> LossSums:
        """The losses of a batch."""
        if self._graphs is not None and self.training:
            sums, spread_B = graphed_losses(self, self._graphs, batch)
            self._spreads.append((spread_B, batch["cut_ids"]))
            return sums
        return self.training_losses(self.prepare_inputs(batch))

    def training_losses(self, inputs: DuplexInputs) -> LossSums:
        """As `loss_sums`; in training a share of the dialogues' codes is hidden, as `model.hide_codes_share` says."""
        if self.training and self.cfg.hide_codes_share:
            inputs = hide_codes(inputs, self.cfg.hide_codes_share, self.speech.delay_id)
        return self.loss_sums(inputs)

    def graph(self) -> None:
        """Let training replay CUDA graphs; see `s2s_model.graphed_step`.

        Raises:
            ValueError: the host decides in each step what runs.
        """
        self._graphs = make_graphs(self)

    def parts(self) -> ModelParts:
        """The modules by how they are shared between devices."""
        embeddings = [self.llm.get_input_embeddings(), self.embed_audio_tokens]
        embeddings += [self.embed_asr_tokens] if self.cfg.predict_user_text else []
        return ModelParts(
            body=llm_body(self.llm),
            config=text_config(self.llm),
            layers=llm_blocks(self.llm),
            embeddings=embeddings,
            heads=self._heads,
            encoder=self.perception,
            encoder_layers=self.perception.blocks(),
            subsampling=self.perception.subsampling(),
        )


def _sounding(inputs: DuplexInputs) -> Tensor:
    return inputs.valid_BT if inputs.sounds_BT is None else inputs.sounds_BT


def as_model_config(config: ModelConfig | DictConfig | dict[str, Any]) -> ModelConfig:
    """Check a mapping against `ModelConfig` and resolve its interpolations."""
    if isinstance(config, ModelConfig):
        return config
    merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), config)
    OmegaConf.resolve(merged)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        raise ValueError(f"model.{missing[0]} isn't set: the config holds ??? or nothing")
    built = OmegaConf.to_object(merged)
    assert isinstance(built, ModelConfig)
    return built


def _check_figures(config: ModelConfig) -> None:
    if not 0 <= config.hide_codes_share <= 1:
        raise ValueError(f"model.hide_codes_share is {config.hide_codes_share}: give a share from 0 to 1")
    weights = {key: getattr(config, key) for key in ("text_loss_weight", "audio_loss_weight", "asr_loss_weight")}
    weights |= {f"token_loss_weight.{key}": value for key, value in vars(config.token_loss_weight).items()}
    for key, value in weights.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"model.{key} is {value}: give a finite number from 0 up")
    for key in (
        "delay_speech_channel_by",
        "delay_text_channel_by",
        "advance_text_channel_by",
        "delay_text_eos_by",
        "delay_source_text_by",
        "max_nonfinite_steps",
    ):
        if getattr(config, key) < 0:
            raise ValueError(f"model.{key} is {getattr(config, key)}: give 0 or more")
    if config.delay_text_channel_by and config.advance_text_channel_by:
        raise ValueError("model.delay_text_channel_by and model.advance_text_channel_by are opposed: set one of them")
    if not config.predict_user_text:
        for key, default in (("delay_source_text_by", 0), ("asr_loss_weight", 1.0)):
            if getattr(config, key) != default:
                raise ValueError(f"model.{key} has no effect without model.predict_user_text: set both or none")
    if config.pretrained_lora is not None and config.lora is None:
        raise ValueError("model.pretrained_lora is an adapter, and model.lora is null: describe its shape there")
    check_sampling(config.generation, "model.generation")


def _embedding_std(llm: Any) -> float:
    return float(getattr(text_config(llm), "initializer_range", 0.02))
