"""Answering: whole recordings at once, or live sessions.

Shapes: `B` batch, `T` frames (80 ms), `S` samples, `K` codebooks, `H` hidden.
"""

from typing import Any

import torch
from torch import Tensor

from s2s_model.generation import FrameModel, Generated, generate
from s2s_model.llm import llm_body, text_config
from s2s_model.network import DuplexNetwork
from s2s_model.sampling import GenerationConfig
from s2s_model.session import DuplexSession
from s2s_model.written_text import text_turns


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
        )

    @torch.no_grad()
    def generate(
        self, source_BTH: Tensor, config: GenerationConfig | None = None, generator: torch.Generator | None = None
    ) -> Generated:
        """Generate text and codes for encoded user frames [B, T, H]; `config` is by default `model.generation`."""
        return generate(self.frame_model(), source_BTH, config or self.cfg.generation, generator)

    @torch.no_grad()
    def offline_inference(
        self,
        input_signal: Tensor,
        input_signal_lens: Tensor,
        decode_audio: bool = True,
        config: GenerationConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Any]:
        """Answer whole user recordings [B, S] of `input_signal_lens` [B] samples.

        Returns:
            `text`: B strings; `text_turns`: for each its turns as (start_s, end_s, text);
            `tokens_text` [B, T] and `tokens_audio` [B, T, K] int64, the codes as they were predicted, one frame
            behind the text; `tokens_len` [B]; with `predict_user_text` also `user_text`, `user_text_turns` and
            `tokens_user_text`; and, if `decode_audio`, `audio` [B, S'] float32 at the codec's rate with
            `audio_len` [B].
        """
        source_BTH, lens_B = self.encode_source(input_signal, input_signal_lens)
        generated = self.generate(source_BTH, config, generator)
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
        config: GenerationConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> DuplexSession:
        """Open live conversations: audio is pushed in as it comes, text and audio come out frame by frame.

        Args:
            batch_size: sessions that advance together.
            max_duration_s: how long one may last without a reset; the LLM's cache is made for it.
            config: how tokens are chosen; by default `model.generation`.
            generator: where draws come from.

        Raises:
            ValueError: the encoder has to hear the whole recording, or the model is in training mode.
        """
        return DuplexSession(self, batch_size, max_duration_s, config or self.cfg.generation, generator)
