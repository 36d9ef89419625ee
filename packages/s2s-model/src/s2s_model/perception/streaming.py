"""Live sessions: audio in frame by frame, the vectors out that the whole recording would have given.

Shapes: `B` sessions, `S` samples, `N` frames (80 ms), `U` frames of a unit, `D` the encoder's width, `H` hidden.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from s2s_model.cuda_graphs import WARM_UP, GraphedFunction
from s2s_model.perception.stream_stages import ConformerStream, MelStream, SubsamplingStream
from s2s_model.perception.streamable import check_streamable

if TYPE_CHECKING:
    from s2s_model.perception.nemo import NemoPerception


class PerceptionStream:
    """`batch_size` sessions that advance together, in memory of a fixed size.

    What `push` gives, and `flush` at the end, is what `perception(...)` gives for the same audio in eval mode, up to
    the rounding of floats. A causal Conformer gives one vector more than there are frames: `flush` gives that one.
    Audio that ends within a frame has to be filled up with silence, in both cases, for the last vectors to be equal.

    Where attention hears ahead within chunks of U frames, a frame's vector is known U - 1 frames later. The stream
    keeps that distance for all frames, so each push gives as many frames as it got.

    The weights mustn't change or move while a stream is in use.

    Args:
        perception: what to stream, in eval mode.
        batch_size: sessions.
        compile: the layers of encoder and adapter.

    Attributes:
        lookahead_frames: by how many frames the output is behind the input.

    Raises:
        ValueError: the encoder can't stream exactly; the message names the config key.
    """

    def __init__(self, perception: "NemoPerception", batch_size: int, compile: bool = False) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: a stream needs 1 or more")
        check_streamable(perception)
        self._perception = perception
        self._batch_size = batch_size
        self._frame_samples = round(perception.sample_rate * perception.frame_length_s)
        encoders: list[Any] = [perception.nemo_encoder]
        if hasattr(perception.modality_adapter, "att_context_size"):
            encoders.append(perception.modality_adapter)
        self._unit = math.lcm(*(encoder.att_context_size[1] + 1 for encoder in encoders))
        self.lookahead_frames = self._unit - 1
        with torch.inference_mode(False):  # what NeMo extends here, training goes on with
            self._open(encoders, compile)

    @torch.no_grad()
    def _open(self, encoders: list[Any], compile: bool) -> None:
        encoder = self._perception.nemo_encoder
        self._mel = MelStream(self._perception.preprocessor.featurizer, self._batch_size, self._frame_samples)
        self._subsampling = SubsamplingStream(encoder.pre_encode)
        self._stacks = [ConformerStream(e, self._batch_size, self._unit, compile) for e in encoders]
        weight = encoder.pre_encode.out.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._heard = [0] * self._batch_size  # frames since the session's start
        self._heard_B = torch.zeros(self._batch_size, dtype=torch.long, device=self._device)  # the same, on the device
        self._waiting_BUD = weight.new_zeros(self._batch_size, self._unit, encoder.d_model)
        self._unit_BUH = weight.new_zeros(self._batch_size, self._unit, self._perception.output_dim)  # the last one
        self._frame_BH = self._unit_BUH[:, 0].clone()  # what a push gives
        none, some, every = (
            GraphedFunction(hear, self._device) for hear in (self._hear_none, self._hear_some, self._hear_all)
        )
        self._hear = {"none": none, "some": some, "all": every}

    @torch.no_grad()
    def warm_up(self) -> None:
        """Capture a frame's work, before the first one is heard."""
        silence_BS = torch.zeros(self._batch_size, self._frame_samples, device=self._device)
        needed = ("all",) if self._unit == 1 else ("none", "all") if self._batch_size == 1 else ("none", "some", "all")
        for which in needed:
            for _ in range(WARM_UP + 1):
                self._hear[which](silence_BS)
        self.reset()

    @property
    def waiting_rows(self) -> list[int]:
        """Sessions that have heard no more than the lookahead: a push gave zeros for them, if anything."""
        return [row for row, heard in enumerate(self._heard) if heard <= self.lookahead_frames]

    @property
    def unheard_rows(self) -> list[int]:
        """Sessions that have heard nothing since they began."""
        return [row for row, heard in enumerate(self._heard) if heard == 0]

    @torch.inference_mode(False)  # the memory changes in place, whoever calls
    @torch.no_grad()
    def push(self, audio_BS: Tensor) -> Tensor:
        """Hear a whole number of frames' samples.

        Args:
            audio_BS: float32 audio [B, S] at `perception.sample_rate`.

        Returns:
            the vectors [B, N, H] that became known: one a frame pushed, none while all sessions wait for the
            lookahead. A session that waits alone, after its reset, gets zeros meanwhile.

        Raises:
            ValueError: the audio has another number of sessions or no whole frames, or the model is in training mode.
        """
        self._check(audio_BS)
        frames = audio_BS.to(self._device, torch.float32).split(self._frame_samples, dim=1)
        return self._join([self._push_frame(frame_BS) for frame_BS in frames])

    @torch.inference_mode(False)
    @torch.no_grad()
    def flush(self) -> Tensor:
        """End the audio of all sessions, and start them anew.

        Returns:
            the vectors [B, N, H] that lookahead held back and the one after the last frame. A session that heard less
            than the others has zeros at its end, one that heard nothing has only zeros.
        """
        lens = [heard % self._unit + 1 if heard else 0 for heard in self._heard]
        x_B1D = self._subsampled(self._mel.last())
        self._wait(x_B1D)
        last_BUH = self._encode(lens_B=torch.tensor(lens, device=self._device).clamp(min=1))
        rows = [self._rest(row, self._unit_BUH, last_BUH) for row in range(self._batch_size)]
        rest_BNH = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        self.reset()
        return rest_BNH

    @torch.inference_mode(False)
    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Let these sessions (all, if None) begin anew with the next push, while the others go on.

        Raises:
            ValueError: there is no such session.
        """
        chosen = range(self._batch_size) if rows is None else rows
        for row in chosen:
            if not 0 <= row < self._batch_size:
                raise ValueError(f"there is no session {row}: they are numbered 0 to {self._batch_size - 1}")
            self._heard[row] = 0
        chosen_B = torch.zeros(self._batch_size, dtype=torch.bool)
        chosen_B[list(chosen)] = True
        chosen_B = chosen_B.to(self._device)
        self._heard_B.masked_fill_(chosen_B, 0)
        self._mel.reset(chosen_B)
        for stack in self._stacks:
            stack.reset(chosen_B)

    def _check(self, audio_BS: Tensor) -> None:
        if self._perception.training:
            raise ValueError("the model is in training mode, in which dropout is active: call eval() first")
        if audio_BS.ndim != 2 or len(audio_BS) != self._batch_size or audio_BS.shape[1] % self._frame_samples:
            raise ValueError(
                f"audio has shape {list(audio_BS.shape)}: {self._batch_size} sessions need [{self._batch_size}, S], "
                f"S a multiple of the frame's {self._frame_samples} samples"
            )

    def _push_frame(self, audio_BS: Tensor) -> Tensor:
        self._heard = [heard + 1 for heard in self._heard]
        full = [heard % self._unit == 0 for heard in self._heard]
        self._hear["all" if all(full) else "some" if any(full) else "none"](audio_BS)
        if max(self._heard) < self._unit:
            return self._nothing()
        frame_BH: Tensor = self._frame_BH.clone()
        return frame_BH[:, None]

    def _hear_none(self, audio_BS: Tensor) -> None:
        """Hear a frame of samples that fills no session's unit."""
        self._take_in(audio_BS)
        self._frame_BH.copy_(self._oldest())

    def _hear_some(self, audio_BS: Tensor) -> None:
        """Hear a frame of samples that fills some sessions' unit."""
        self._take_in(audio_BS)
        full_B = self._heard_B % self._unit == 0
        unit_BUH = self._encode(commit_B=full_B)
        self._unit_BUH.copy_(torch.where(full_B[:, None, None], unit_BUH, self._unit_BUH))
        self._frame_BH.copy_(self._oldest())

    def _hear_all(self, audio_BS: Tensor) -> None:
        """Hear a frame of samples that fills all sessions' unit."""
        self._take_in(audio_BS)
        self._unit_BUH.copy_(self._encode())
        self._frame_BH.copy_(self._oldest())

    def _take_in(self, audio_BS: Tensor) -> None:
        self._wait(self._subsampled(self._mel.step(audio_BS)))
        self._heard_B.add_(1)

    def _subsampled(self, mels_BPF: Tensor) -> Tensor:
        return self._subsampling.step(mels_BPF.to(self._dtype), self._heard_B == 0)

    def _wait(self, x_B1D: Tensor) -> None:
        """Put the new frame to its place in the unit."""
        here_BU = torch.arange(self._unit, device=self._device) == (self._heard_B % self._unit)[:, None]
        self._waiting_BUD.copy_(torch.where(here_BU[..., None], x_B1D, self._waiting_BUD))

    def _encode(self, lens_B: Tensor | None = None, commit_B: Tensor | None = None) -> Tensor:
        """Encode the unit that waits to vectors [B, U, H]."""
        encoder: Any = self._perception.nemo_encoder
        adapter: Any = self._perception.modality_adapter
        outputs = self._stacks[0].step(self._waiting_BUD, lens_B, commit_B)
        if "encoder_multilayer" in self._perception._modules:
            extractor: Any = self._perception.encoder_multilayer
            chosen = [outputs[i] for i in extractor.layer_idx_list]
            chosen += [outputs[-1]] if extractor.include_final_output else []
            layers_BDU = [self._out(encoder, x).transpose(1, 2) for x in chosen]
            x_BUD = adapter(layers_BDU, [lens_B] * len(layers_BDU))[0].transpose(1, 2)
        else:
            x_BUD = self._out(encoder, outputs[-1])
        if len(self._stacks) > 1:
            x_BUD = self._out(adapter, self._stacks[1].step(adapter.pre_encode(x_BUD), lens_B, commit_B)[-1])
        vectors_BUH: Tensor = self._perception.proj(x_BUD)
        return vectors_BUH

    def _out(self, encoder: Any, x_BUD: Tensor) -> Tensor:
        projected: Tensor = x_BUD if encoder.out_proj is None else encoder.out_proj(x_BUD)
        return projected

    def _oldest(self) -> Tensor:
        """The frame [B, H] that is `lookahead_frames` old; zeros for sessions that have none."""
        ages_B = self._heard_B - self._unit
        frame_BH: Tensor = self._unit_BUH[torch.arange(self._batch_size, device=self._device), ages_B % self._unit]
        return frame_BH.masked_fill((ages_B < 0)[:, None], 0)

    def _rest(self, row: int, known_BUH: Tensor, last_BUH: Tensor) -> Tensor:
        """What a session [N, H] hasn't given yet, the frame after its last one included."""
        heard = self._heard[row]
        if not heard:
            return last_BUH[row, :0]
        in_last = heard % self._unit + 1
        missing = min(heard, self._unit - 1) + 1 - in_last  # of the unit before, full since some frames
        return torch.cat([known_BUH[row, self._unit - missing :], last_BUH[row, :in_last]])

    def _nothing(self) -> Tensor:
        width = self._perception.output_dim
        return torch.zeros(self._batch_size, 0, width, device=self._device, dtype=self._dtype)

    def _join(self, frames: list[Tensor]) -> Tensor:
        return torch.cat([self._nothing(), *frames], dim=1)
