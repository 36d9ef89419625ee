"""The stages of a stream: mel features, the subsampling convolutions and Conformer layers, each with its memory.

Each stage gives frame by frame what the whole recording gives. Its memory stays at its address and changes in place,
so that a GPU can replay a step as a CUDA graph.

Shapes: `B` sessions, `S` samples, `P` mel frames of a frame (8 of 10 ms), `F` mel features, `U` frames of a unit,
`D` the encoder's width, `N` attention heads, `L` frames of left context.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, scaled_dot_product_attention


class MelStream:
    """Mel features of a frame: those up to and with the one centred on the frame's first sample.

    NeMo's causal convolutions put that one last into the frame's window.
    """

    def __init__(self, featurizer: Any, batch_size: int, frame_samples: int) -> None:
        self._featurizer = featurizer
        self._hop = featurizer.hop_length
        self._mels = frame_samples // self._hop  # P
        # Windows that reach over an edge of the segment are wrong; pre-emphasis needs a sample more on the left.
        self._margin = math.ceil((featurizer.win_length // 2 + 1) / self._hop)
        self._past = (self._mels - 1 + self._margin) * self._hop
        self._heard_BS = torch.zeros(batch_size, self._past, device=featurizer.fb.device)

    def step(self, audio_BS: Tensor) -> Tensor:
        """The next frame's samples to its mel features [B, P, F], float32."""
        heard_BS = torch.cat([self._heard_BS, audio_BS], dim=1)
        self._heard_BS.copy_(heard_BS[:, -self._past :])
        end = self._past + self._margin * self._hop
        return self._features(pad(heard_BS[:, :end], (0, max(0, end - heard_BS.shape[1]))), end)

    def last(self) -> Tensor:
        """The mel features [B, P, F] after the last frame: silence follows, and the last one no longer exists."""
        segment_BS = pad(self._heard_BS, (0, self._margin * self._hop))
        return pad(self._features(segment_BS, self._past)[:, :-1], (0, 0, 0, 1))

    def _features(self, segment_BS: Tensor, valid: int) -> Tensor:
        lens_B = torch.full((len(segment_BS),), valid, device=segment_BS.device)
        mels_BFP, _ = self._featurizer(segment_BS, lens_B)
        mels_BPF: Tensor = mels_BFP[:, :, self._margin : self._margin + self._mels].transpose(1, 2)
        return mels_BPF

    def reset(self, chosen_B: Tensor) -> None:
        """Nothing has been heard in the chosen sessions."""
        self._heard_BS.masked_fill_(chosen_B[:, None], 0)


class SubsamplingStream:
    """The causal convolutions that make one vector of P mel frames; each remembers the last of its inputs."""

    def __init__(self, pre_encode: Any) -> None:
        from nemo.collections.asr.parts.submodules.causal_convs import CausalConv2D

        self._convolution = CausalConv2D
        self._pre_encode = pre_encode
        self._last: dict[int, Tensor] = {}

    def step(self, mels_BPF: Tensor, fresh_B: Tensor) -> Tensor:
        """Subsample [B, P, F] to [B, 1, D]; in `fresh_B` sessions only the last mel frame exists.

        Before a recording's start every layer sees zeros, not what the layer below makes of zeros.
        """
        x = mels_BPF[:, None]
        for i, module in enumerate(self._pre_encode.conv):
            x = self._convolve(i, module, x, fresh_B) if isinstance(module, self._convolution) else module(x)
        out: Tensor = self._pre_encode.out(x.transpose(1, 2).flatten(2))
        return out

    def _convolve(self, i: int, conv: Any, x: Tensor, fresh_B: Tensor) -> Tensor:
        last = self._last.setdefault(i, torch.zeros_like(x[:, :, :1]))
        joined = torch.cat([last, x], dim=2)
        before = torch.arange(joined.shape[2], device=x.device) < joined.shape[2] - 1
        joined = joined.masked_fill((fresh_B[:, None] & before)[:, None, :, None], 0)
        last.copy_(x[:, :, -1:])
        joined = pad(joined, (conv._left_padding, conv._right_padding))
        return conv2d(joined, conv.weight, conv.bias, conv.stride, groups=conv.groups)


class ConformerStream:
    """The layers of a Conformer with limited context. Each remembers keys, values and its convolution's inputs.

    The attention is that of Transformer-XL (arXiv 1901.02860, section 3.3). NeMo's own streaming remembers the layers'
    inputs instead, and projects all of them, and all positions, anew for each frame.

    Args:
        encoder: NeMo's `ConformerEncoder`.
        batch_size: sessions.
        unit: frames of a step (U), a multiple of the encoder's attention chunk.
        compile: the layers, by torch.compile; all of them share what is compiled.
    """

    def __init__(self, encoder: Any, batch_size: int, unit: int, compile: bool = False) -> None:
        self._encoder = encoder
        self._advance = _compiled() if compile else _advance
        self._left: int = encoder.att_context_size[0]
        weight = next(encoder.layers.parameters())
        self._hidden_UJ = self._chunk_mask(unit).to(weight.device)
        self._position_UJ = self._position_index(unit).to(weight.device)
        self._positions = [self._project_positions(layer.self_attn, unit) for layer in encoder.layers]
        self._known_B = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        heads = encoder.layers[0].self_attn
        past = (batch_size, heads.h, self._left, heads.d_k)
        inputs = (batch_size, encoder.d_model, encoder.conv_context_size[0])
        self._memory: list[tuple[Tensor, ...]] = [
            tuple(weight.new_zeros(shape) for shape in (past, past, inputs)) for _ in encoder.layers
        ]

    def step(self, x_BUD: Tensor, lens_B: Tensor | None = None, commit_B: Tensor | None = None) -> list[Tensor]:
        """Advance by a unit.

        Args:
            x_BUD: its frames.
            lens_B: how many of them are there, if not all; only for the last unit.
            commit_B: sessions that remember this step; None: all.

        Returns:
            the output [B, U, D] of each layer.
        """
        hidden_BUJ = self._mask(x_BUD.shape[1], lens_B)
        x_BUD = x_BUD if self._encoder.xscale is None else x_BUD * self._encoder.xscale
        outputs = []
        for layer, positions, memory in zip(self._encoder.layers, self._positions, self._memory, strict=True):
            x_BUD = self._advance(layer, x_BUD, hidden_BUJ, positions, self._position_UJ, memory, commit_B)
            outputs.append(x_BUD)
        known_B = (self._known_B + x_BUD.shape[1]).clamp(max=self._left)
        self._known_B.copy_(known_B if commit_B is None else _choose(commit_B, known_B, self._known_B))
        return outputs

    def reset(self, chosen_B: Tensor) -> None:
        """Nothing has been heard in the chosen sessions."""
        for memory in [self._known_B, *(x for of_layer in self._memory for x in of_layer)]:
            memory.masked_fill_(chosen_B.view(-1, *[1] * (memory.ndim - 1)), 0)

    def _chunk_mask(self, unit: int) -> Tensor:
        """True where a frame of the unit may not hear: outside its own chunk and those before it that fit L."""
        right: int = self._encoder.att_context_size[1]
        chunk_U = torch.arange(unit) // (right + 1)
        chunk_J = torch.arange(-self._left, unit) // (right + 1)
        back_UJ = chunk_U[:, None] - chunk_J
        return (back_UJ < 0) | (back_UJ > self._left // (right + 1))

    def _mask(self, unit: int, lens_B: Tensor | None) -> Tensor:
        frame_J = torch.arange(-self._left, unit, device=self._known_B.device)
        hidden_BJ = frame_J < -self._known_B[:, None]
        if lens_B is not None:
            hidden_BJ = hidden_BJ | (frame_J >= lens_B[:, None])
        return self._hidden_UJ | hidden_BJ[:, None]

    def _position_index(self, unit: int) -> Tensor:
        """Which of the descending distances L + U - 1, .., 1 - U lies between frame u and what it hears."""
        return torch.arange(self._left + unit) - torch.arange(unit)[:, None] + unit - 1

    def _project_positions(self, attention: Any, unit: int) -> Tensor:
        """The embedded distances [N, L + 2U - 1, D / N]."""
        table = self._encoder.pos_enc
        weight = attention.linear_pos.weight
        table.extend_pe(self._left + unit, weight.device, weight.dtype)
        start = table.pe.shape[1] // 2 + 1 - self._left - unit
        embedded = table.pe[0, start : start + self._left + 2 * unit - 1].to(weight)
        projected: Tensor = attention.linear_pos(embedded)
        return projected.view(-1, attention.h, attention.d_k).transpose(0, 1)


@cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(_advance, dynamic=False)
    return compiled


def _advance(
    layer: Any,
    x: Tensor,
    hidden_BUJ: Tensor,
    positions: Tensor,
    position_UJ: Tensor,
    memory: tuple[Tensor, ...],
    commit_B: Tensor | None,
) -> Tensor:
    """A layer's output [B, U, D]; `memory` changes in place."""
    keys, values, inputs = memory
    x = x + layer.fc_factor * layer.feed_forward1(layer.norm_feed_forward1(x))
    attended, keys, values = _attend(
        layer.self_attn, layer.norm_self_att(x), hidden_BUJ, positions, position_UJ, keys, values
    )
    x = x + attended
    convolved, inputs = layer.conv(layer.norm_conv(x), cache=inputs)
    x = x + convolved
    x = x + layer.fc_factor * layer.feed_forward2(layer.norm_feed_forward2(x))
    for old, new in zip(memory, (keys, values, inputs), strict=True):
        old.copy_(new if commit_B is None else _choose(commit_B, new, old))
    out: Tensor = layer.norm_out(x)
    return out


def _attend(
    attention: Any,
    x: Tensor,
    hidden_BUJ: Tensor,
    positions: Tensor,
    position_UJ: Tensor,
    keys: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    left = keys.shape[2]
    query, key, value = attention.forward_qkv(x, x, x)  # [B, N, U, D / N]
    keys, values = torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)
    by_content = query + attention.pos_bias_u[:, None]
    by_position = (query + attention.pos_bias_v[:, None]) @ positions.transpose(1, 2)
    index = position_UJ.expand(*by_position.shape[:2], -1, -1)
    bias = by_position.gather(3, index) / attention.s_d_k
    bias = bias.masked_fill(hidden_BUJ[:, None], -torch.inf)
    out = scaled_dot_product_attention(by_content, keys, values, attn_mask=bias)
    mixed: Tensor = attention.linear_out(out.transpose(1, 2).flatten(2))
    start = keys.shape[2] - left
    return mixed, keys[:, :, start:], values[:, :, start:]


def _choose(chosen_B: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(chosen_B.view(-1, *[1] * (new.ndim - 1)), new, old)
