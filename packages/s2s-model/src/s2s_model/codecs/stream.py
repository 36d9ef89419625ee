"""Decoding codes as they come, window by window.

Shapes: `B` sessions, `N` new frames (80 ms), `L` frames of left context, `K` codebooks, `R` samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from s2s_model.codecs.base import AudioCodec
from s2s_model.codecs.context import decode_context


class CodecStream:
    """Decodes `batch_size` streams of codes; what comes out is what decoding at once gives, `lookahead_frames` later.

    Each frame is decoded with the frames around it that its samples depend on. Where a codec's decoder looks back
    without end (`is_exact` is False), the last 64 frames are taken, which is close.
    """

    def __init__(self, codec: AudioCodec, batch_size: int, device: torch.device) -> None:
        self._codec = codec
        self._left, self.lookahead_frames, self.is_exact = decode_context(codec)
        self._codes_BLK = torch.zeros(batch_size, 0, codec.num_codebooks, dtype=torch.long, device=device)
        self._num_heard = [0] * batch_size  # frames of each stream

    def push(self, codes_BNK: Tensor) -> Tensor:
        """Decode N new frames: float32 audio [B, N * samples_per_frame].

        It is that of the frames `lookahead_frames` earlier; silence where there were none.
        """
        num_new = codes_BNK.shape[1]
        if num_new == 0:
            return torch.zeros(len(codes_BNK), 0, dtype=torch.float32, device=codes_BNK.device)
        self._codes_BLK = torch.cat([self._codes_BLK, codes_BNK], dim=1)
        self._num_heard = [heard + num_new for heard in self._num_heard]
        audio_BR = self._decode(num_new)
        self._codes_BLK = self._codes_BLK[:, -(self._left + self.lookahead_frames) or self._codes_BLK.shape[1] :]
        return audio_BR

    def flush(self) -> Tensor:
        """The audio of the last `lookahead_frames` frames [B, lookahead_frames * samples_per_frame]."""
        size = self._codec.samples_per_frame
        if self.lookahead_frames == 0 or self._codes_BLK.shape[1] == 0:
            return torch.zeros(len(self._codes_BLK), 0, dtype=torch.float32, device=self._codes_BLK.device)
        return self._decode(0)[:, -self.lookahead_frames * size :]

    def reset(self, rows: Sequence[int]) -> None:
        """Let these streams begin anew."""
        for row in rows:
            self._num_heard[row] = 0

    def _decode(self, num_new: int) -> Tensor:
        """Decode the newest `num_new` frames, those that wait for their right context aside."""
        size = self._codec.samples_per_frame
        held = self._codes_BLK.shape[1]
        wanted = num_new or self.lookahead_frames
        audio_BR = torch.zeros(len(self._codes_BLK), wanted * size, dtype=torch.float32, device=self._codes_BLK.device)
        for available, rows in self._rows_by_length(held).items():
            codes = self._codes_BLK[rows, held - available :]
            lens = torch.full((len(rows),), available, device=codes.device)
            audio, _ = self._codec.decode(codes, lens)
            end = available * size - (self.lookahead_frames * size if num_new else 0)
            begin = max(end - wanted * size, 0)
            if end > begin:
                audio_BR[rows, wanted * size - (end - begin) :] = audio[:, begin:end]
        return audio_BR

    def _rows_by_length(self, held: int) -> dict[int, list[int]]:
        """Streams that began at the same time are decoded together: the frames of theirs that are held."""
        groups: dict[int, list[int]] = {}
        for row, heard in enumerate(self._num_heard):
            if heard:
                groups.setdefault(min(heard, held), []).append(row)
        return groups
