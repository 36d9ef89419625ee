"""Answering: whole recordings at once, or live sessions.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `K` codebooks, `H` hidden.
"""

from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from s2s_model.frame_decoder import FrameModel
from s2s_model.generation import DecoderPool, Generated, generate, why_eager
from s2s_model.llm import llm_blocks, llm_body, text_config
from s2s_model.network import DuplexNetwork
from s2s_model.sampling import GenerationConfig, as_generation_config
from s2s_model.session import DuplexSession, check_audio
from s2s_model.written_text import text_turns
from s2s_parallel.fsdp import check_gathered


class AnsweringNetwork(DuplexNetwork):
    """The network with what it takes to talk to it."""

    def frame_model(self) -> FrameModel:
        """The parts that generation drives frame by frame."""
        return FrameModel(
            embed=self.embed,
            body=llm_body(self.llm),
            heads=self.heads,
            llm_config=text_config(self.llm),
            pad_id=self.tokenizer.pad_id,
            delay_id=self.speech.delay_id,
            num_codebooks=self.audio_codec.num_codebooks,
            writes_user_text=self.cfg.predict_user_text,
            blocks=llm_blocks(self.llm),
            why_eager=why_eager(self.llm),
            weights=self._weights,
        )

    @cached_property
    def _decoders(self) -> DecoderPool:
        return DecoderPool()

    def _weights(self) -> Hashable:
        parts = (self.llm, self.audio_head, self.embed_audio_tokens)
        own = [] if not self.cfg.predict_user_text else [self.asr_head, self.embed_asr_tokens]
        tensors = (t for part in (*parts, *own) for t in (*part.parameters(), *part.buffers()))
        whole = (t.to_local() if isinstance(t, DTensor) else t for t in tensors)
        return tuple((t.data_ptr(), t.dtype) for t in whole)

    def release_graphs(self) -> None:
        """Free what `generate` keeps for its next call: caches and CUDA graphs."""
        self._decoders.release()

    @torch.no_grad()
    def generate(
        self,
        source_BTH: Tensor,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> Generated:
        """Generate text and codes for encoded user frames [B, T, H]; `config` is by default `model.generation`.

        On a GPU the cache and the CUDA graph of a step are kept for the next call; `release_graphs` frees them.
        """
        config = as_generation_config(config or self.cfg.generation)
        return generate(self.frame_model(), self._decoders, source_BTH, config, generator, compile)

    @torch.no_grad()
    def offline_inference(
        self,
        input_signal: Tensor,
        input_signal_lens: Tensor,
        decode_audio: bool = True,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> dict[str, Any]:
        """Answer whole user recordings [B, S] of `input_signal_lens` [B] samples, floats from -1 to 1.

        `config` says how tokens are chosen, by default as `model.generation` does; a mapping such as
        `{"text": {"temperature": 0.7}}` will do. `compile` makes each frame faster after slow first ones.

        Returns:
            `text`: B strings; `text_turns`: for each its turns as (start_s, end_s, text);
            `tokens_text` [B, T] and `tokens_audio` [B, T, K] int64, the codes as they were predicted, one frame
            behind the text; `tokens_len` [B]; with `predict_user_text` also `user_text`, `user_text_turns` and
            `tokens_user_text`; and, if `decode_audio`, `audio` [B, S'] float32 at the codec's rate with
            `audio_len` [B].

        Raises:
            ValueError: the audio isn't finite floats of that shape, or the model is in training mode.
        """
        if self.training:
            raise ValueError("the model is in training mode, in which dropout is active: call model.eval() first")
        check_audio(input_signal)
        if input_signal_lens.shape != input_signal.shape[:1] or int(input_signal_lens.max()) > input_signal.shape[1]:
            raise ValueError(
                f"input_signal_lens is {input_signal_lens.tolist()}: give the samples of each of the "
                f"{len(input_signal)} recordings, {input_signal.shape[1]} at most"
            )
        return self.answer(input_signal, input_signal_lens, decode_audio, config, generator, compile)

    @torch.no_grad()
    def answer(
        self,
        input_signal: Tensor,
        input_signal_lens: Tensor,
        decode_audio: bool = True,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> dict[str, Any]:
        """As `offline_inference`, for audio that is known to be right."""
        source_BTH, lens_B = self.encode_source(input_signal, input_signal_lens)
        generated = self.generate(source_BTH, config, generator, compile)
        turns, text = self._written(generated.text_BT, lens_B)
        answer: dict[str, Any] = {
            "text": text,
            "text_turns": turns,
            "tokens_text": generated.text_BT,
            "tokens_audio": generated.codes_BTK,
            "tokens_len": lens_B,
        }
        if generated.user_text_BT is not None:
            answer["user_text_turns"], answer["user_text"] = self._written(generated.user_text_BT, lens_B)
            answer["tokens_user_text"] = generated.user_text_BT
        if decode_audio:
            codes_BTK = self.speakable(generated.codes_BTK)
            answer["audio"], answer["audio_len"] = self.audio_codec.decode(codes_BTK, lens_B)
        return answer

    def speakable(self, codes_BTK: Tensor) -> Tensor:
        """Predicted codes with silence where a control code stands, as the codec can decode them."""
        return self.speech.replace_control(codes_BTK, self.audio_codec.silence_codes().to(codes_BTK.device))

    def _written(self, tokens_BT: Tensor, lens_B: Tensor) -> tuple[list[list[tuple[float, float, str]]], list[str]]:
        turns = [
            text_turns(tokens[:length], self.tokenizer, self.frame_length_s)
            for tokens, length in zip(tokens_BT.tolist(), lens_B.tolist(), strict=True)
        ]
        return turns, [" ".join(text for _, _, text in sample if text) for sample in turns]

    def open_session(
        self,
        batch_size: int = 1,
        max_duration_s: float = 300.0,
        config: GenerationConfig | Mapping[str, Any] | None = None,
        generator: torch.Generator | None = None,
        compile: bool = False,
    ) -> DuplexSession:
        """Open live conversations: audio is pushed in as it comes, text and audio come out frame by frame.

        Args:
            batch_size: sessions that advance together.
            max_duration_s: how long one may last without a reset; the LLM's cache is made for it.
            config: how tokens are chosen; by default `model.generation`.
            generator: where draws come from.
            compile: make each frame faster on a GPU; opening then takes longer.

        Raises:
            ValueError: the encoder has to hear the whole recording, the model is in training mode, or its weights are
                sharded and not gathered.
        """
        check_gathered(self.perception)
        config = as_generation_config(config or self.cfg.generation)
        return DuplexSession(self, batch_size, max_duration_s, config, generator, compile)
