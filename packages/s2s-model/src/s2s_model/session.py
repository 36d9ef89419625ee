"""A live conversation: the user's audio in, the agent's text and voice out, frame by frame.

Shapes: `B` sessions, `S` samples of user audio, `R` samples of agent audio, `N` frames (80 ms) that became known,
`K` codebooks, `H` hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from s2s_model.codecs.stream import CodecStream
from s2s_model.frame_decoder import FrameDecoder
from s2s_model.sampling import GenerationConfig
from s2s_model.written_text import TextWriter

if TYPE_CHECKING:
    from s2s_model.answering import AnsweringNetwork

RESERVE = 1  # frames in the cache for `flush`: a causal encoder gives one vector more than there are frames


@dataclass(frozen=True)
class SessionOutput:
    """What the agent wrote and said since the push before."""

    audio_BR: Tensor  # float32 at the codec's rate
    text: list[str]  # B pieces of text; a session's pieces joined are all it wrote
    user_text: list[str]  # what the user said, where the model writes that; else empty strings
    tokens_BN: Tensor  # int64, control tokens included
    codes_BNK: Tensor  # int64, control codes included


class DuplexSession:
    """`batch_size` conversations that advance together; `DuplexS2SModel.open_session` makes one.

    The same audio gives the same tokens and codes as `offline_inference`. Memory is fixed when the session opens.
    Each frame of audio takes one step of encoder, LLM and codec, whatever came before.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        model: "AnsweringNetwork",
        batch_size: int,
        max_duration_s: float,
        config: GenerationConfig,
        generator: torch.Generator | None,
        compile: bool = False,
    ) -> None:
        if model.training:
            raise ValueError("the model is in training mode, in which dropout is active: call model.eval() first")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: a session needs 1 or more")
        max_frames = int(max_duration_s / model.frame_length_s + 1e-6)
        if max_frames < 1:
            raise ValueError(f"max_duration_s is {max_duration_s}: shorter than a frame of {model.frame_length_s} s")
        self._model = model
        self._batch_size = batch_size
        self._samples_per_frame = round(model.source_sample_rate * model.frame_length_s)
        self._ear = model.perception.stream(batch_size, compile)
        self._mind = FrameDecoder(
            model.frame_model(), batch_size, max_frames + RESERVE, model.device, config, generator, compile
        )
        self._voice = CodecStream(model.audio_codec, batch_size, model.device)
        self._writers = [TextWriter(model.tokenizer) for _ in range(batch_size)]
        self._user_writers = [TextWriter(model.tokenizer) for _ in range(batch_size)]
        self._heard_BS = torch.zeros(batch_size, 0, dtype=torch.float32, device=model.device)
        if model.device.type == "cuda":
            self._warm_up()

    def _warm_up(self) -> None:
        """Compile and capture now, so that no push is late; what was drawn isn't used up."""
        self._ear.warm_up()
        dtype = next(self._model.perception.parameters()).dtype
        width = self._model.perception.output_dim
        self._mind.warm_up(torch.zeros(self._batch_size, width, dtype=dtype, device=self._model.device))
        self._voice.warm_up()

    @property
    def latency_s(self) -> float:
        """Seconds from a sample's arrival to the agent's audio that can react to it, computation not counted.

        A frame has to be heard to its end, then what the encoder and the codec look ahead.
        """
        return (1 + self._ear.lookahead_frames + self._voice.lookahead_frames) * self._model.frame_length_s

    @torch.inference_mode(False)  # the session's memory changes in place, whoever calls
    @torch.no_grad()
    def push(self, audio_BS: Tensor) -> SessionOutput:
        """Hear audio [B, S] at `model.source_sample_rate`, of any length; what doesn't fill a frame is kept.

        Returns:
            the N frames that became known. Their audio begins with silence of what the codec looks ahead.

        Raises:
            ValueError: the audio isn't finite floats, has another number of sessions, or doesn't fit into a session
                any more (reset it); nothing of it was heard then.
        """
        if isinstance(audio_BS, Tensor) and (audio_BS.is_floating_point() or not audio_BS.numel()):
            audio_BS = audio_BS.to(self._heard_BS)  # checked there: a CPU wakes all its threads for it
        if not isinstance(audio_BS, Tensor) or audio_BS.ndim != 2 or audio_BS.shape[1]:  # nothing new is no mistake
            check_audio(audio_BS)
        if len(audio_BS) != self._batch_size:
            raise ValueError(
                f"audio has shape {list(audio_BS.shape)}: {self._batch_size} sessions need [{self._batch_size}, S]"
            )
        heard_BS = torch.cat([self._heard_BS, audio_BS], dim=1)
        whole = heard_BS.shape[1] // self._samples_per_frame * self._samples_per_frame
        self._mind.check_room(whole // self._samples_per_frame, RESERVE)  # before anything has heard the audio
        audio_BS, self._heard_BS = heard_BS[:, :whole], heard_BS[:, whole:]
        outputs = [self._nothing()]
        for begin in range(0, whole, self._samples_per_frame):
            frame_BS = audio_BS[:, begin : begin + self._samples_per_frame]
            source_BNH = self._ear.push(frame_BS)
            outputs.append(self._answer(source_BNH, self._ear.waiting_rows))
        return _join(outputs)

    @torch.inference_mode(False)  # the session's memory changes in place, whoever calls
    @torch.no_grad()
    def flush(self) -> SessionOutput:
        """End the audio: what the encoder and the codec held back comes out. Then all sessions begin anew.

        A last piece of audio that doesn't fill a frame is filled up with silence.
        """
        missing = -self._heard_BS.shape[1] % self._samples_per_frame
        outputs = [self.push(self._heard_BS.new_zeros(self._batch_size, missing))] if missing else []
        unheard = self._ear.unheard_rows
        outputs.append(self._answer(self._ear.flush(), unheard))
        tail = SessionOutput(
            audio_BR=self._voice.flush(),
            text=[writer.close() for writer in self._writers],
            user_text=[writer.close() for writer in self._user_writers],
            tokens_BN=outputs[0].tokens_BN[:, :0],
            codes_BNK=outputs[0].codes_BNK[:, :0],
        )
        self.reset()
        return _join([*outputs, tail])

    @torch.inference_mode(False)
    def interrupt(self, rows: int | Sequence[int] | None = None) -> None:
        """End the agent's turn in these sessions (all, if None) at once; it goes on listening.

        The model reads an end of turn as its own last frame. A session in which the agent is silent isn't changed.
        """
        for row in self._rows(rows):
            if self._writers[row].in_turn:
                self._mind.replace_last([row], self._model.tokenizer.eos_id, self._model.speech.eos_id)
                self._writers[row].close()

    @torch.inference_mode(False)
    def reset(self, rows: int | Sequence[int] | None = None) -> None:
        """Let these sessions (all, if None) begin anew while the others go on.

        Audio of theirs that doesn't fill a frame yet is silenced, since all sessions share one frame clock.
        """
        chosen = self._rows(rows)
        self._ear.reset(chosen)
        self._mind.reset(chosen)
        self._voice.reset(chosen)
        for row in chosen:
            self._heard_BS[row] = 0
            self._writers[row] = TextWriter(self._model.tokenizer)
            self._user_writers[row] = TextWriter(self._model.tokenizer)
        if len(chosen) == self._batch_size:
            self._heard_BS = self._heard_BS[:, :0]

    def _rows(self, rows: int | Sequence[int] | None) -> list[int]:
        if isinstance(rows, int):
            rows = [rows]
        chosen = list(range(self._batch_size)) if rows is None else sorted(set(rows))
        for row in chosen:
            if not 0 <= row < self._batch_size:
                raise ValueError(f"there is no session {row}: they are numbered 0 to {self._batch_size - 1}")
        return chosen

    def _nothing(self) -> SessionOutput:
        B, device = self._batch_size, self._heard_BS.device
        codes_BNK = torch.zeros(B, 0, self._model.audio_codec.num_codebooks, dtype=torch.long, device=device)
        return SessionOutput(self._heard_BS[:, :0], [""] * B, [""] * B, codes_BNK[..., 0], codes_BNK)

    def _answer(self, source_BNH: Tensor, waiting: list[int]) -> SessionOutput:
        """Predict the frames that became known; sessions that wait for the encoder's lookahead stay silent."""
        if source_BNH.shape[1] == 0:
            return self._nothing()
        frames = [self._mind.step(source_BNH[:, n]) for n in range(source_BNH.shape[1])]
        tokens_BN = torch.stack([frame.text_B for frame in frames], dim=1)
        codes_BNK = torch.stack([frame.codes_BK for frame in frames], dim=1)
        if waiting:  # an index, even an empty one, is a copy that waits for the device
            tokens_BN[waiting] = self._model.tokenizer.pad_id
            codes_BNK[waiting] = self._model.speech.delay_id
        audio_BR = self._voice.push(self._model.speakable(codes_BNK))
        text = self._write(self._writers, tokens_BN)
        user_text = [""] * self._batch_size
        if frames[0].user_text_B is not None:
            user_tokens_BN = torch.stack([_written(frame.user_text_B) for frame in frames], dim=1)
            user_tokens_BN[waiting] = self._model.tokenizer.pad_id
            user_text = self._write(self._user_writers, user_tokens_BN)
        if waiting:
            self._mind.reset(waiting)
            self._voice.reset(waiting)
        return SessionOutput(audio_BR, text, user_text, tokens_BN, codes_BNK)

    def _write(self, writers: list[TextWriter], tokens_BN: Tensor) -> list[str]:
        rows = zip(writers, tokens_BN.tolist(), strict=True)
        return ["".join(writer.write(token) for token in tokens) for writer, tokens in rows]


def _written(tokens_B: Tensor | None) -> Tensor:
    assert tokens_B is not None, "a model writes the user's text in all frames or in none"
    return tokens_B


def check_audio(audio_BS: Tensor) -> None:
    """Refuse what isn't audio of some recordings [B, S]; waits for the device."""
    if not isinstance(audio_BS, Tensor) or audio_BS.ndim != 2 or 0 in audio_BS.shape:
        shape = list(audio_BS.shape) if isinstance(audio_BS, Tensor) else type(audio_BS).__name__
        raise ValueError(f"audio has shape {shape}: give a tensor [B, S], S samples of B recordings")
    if not audio_BS.is_floating_point():
        raise ValueError(f"audio is {audio_BS.dtype}: give floats from -1 to 1 (divide int16 by 32768)")
    finite_B = audio_BS.isfinite().all(dim=1).tolist()
    if not all(finite_B):
        raise ValueError(f"the audio of row {finite_B.index(False)} isn't finite: it holds NaN or infinity")


def _join(outputs: list[SessionOutput]) -> SessionOutput:
    return SessionOutput(
        audio_BR=torch.cat([o.audio_BR for o in outputs], dim=1),
        text=["".join(pieces) for pieces in zip(*(o.text for o in outputs), strict=True)],
        user_text=["".join(pieces) for pieces in zip(*(o.user_text for o in outputs), strict=True)],
        tokens_BN=torch.cat([o.tokens_BN for o in outputs], dim=1),
        codes_BNK=torch.cat([o.codes_BNK for o in outputs], dim=1),
    )
