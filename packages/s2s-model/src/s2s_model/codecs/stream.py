"""Decoding codes as they come, window by window.

Shapes: `B` sessions, `N` new frames (80 ms), `W` of a window, `L` that are held, `K` codebooks, `R` samples.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from s2s_model.codecs.base import AudioCodec
from s2s_model.codecs.context import decode_context
from s2s_model.cuda_graphs import WARM_UP, GraphedFunction


class CodecStream:
    """Decodes `batch_size` streams of codes; what comes out is what decoding at once gives, `lookahead_frames` later.

    Each frame is decoded with the frames around it that its samples depend on. Where a codec's decoder looks back
    without end (`is_exact` is False), the last 64 frames are taken, which is close. On a GPU a frame of all streams is
    one CUDA graph; if the codec can't decode streams that began at different times together, only where all have lasted
    that long. Several frames at once are decoded kernel by kernel.
    """

    @torch.inference_mode(False)  # what is kept must be of use within and without
    def __init__(self, codec: AudioCodec, batch_size: int, device: torch.device) -> None:
        self._codec = codec
        self._left, self.lookahead_frames, self.is_exact = decode_context(codec)
        codec._move_to(device)
        self._size = codec.samples_per_frame
        self._width = self._left + 1 + self.lookahead_frames  # W, what a frame is decoded with
        self._codes_BWK = torch.zeros(batch_size, self._width, codec.num_codebooks, dtype=torch.long, device=device)
        self._audio_BR = torch.zeros(batch_size, self._size, device=device, dtype=torch.float32)
        self._num_heard = [0] * batch_size  # frames of each stream
        self._takes_any = codec.decodes_beginnings and not self.lookahead_frames
        self._heard_B = torch.zeros(batch_size, dtype=torch.long, device=device)  # the same, where it takes any
        self._advance = GraphedFunction(self._decode_frame, device)

    def warm_up(self) -> None:
        """Capture, before the first frame; kernels of windows that are decoded apart are made too."""
        if not self._takes_any:
            self._warm_up_windows()
        for _ in range(WARM_UP + 1):
            self._advance(self._codes_BWK[:, :1])
        self._heard_B.zero_()

    def _warm_up_windows(self) -> None:
        sizes = {len(self._codes_BWK), *(2**i for i in range(len(self._codes_BWK).bit_length()))}
        for size, available in product(sizes, range(1, self._width + 1)):
            self._codec.decode_newest(self._codes_BWK[:size, :available], min(1 + self.lookahead_frames, available))

    @torch.inference_mode(False)
    @torch.no_grad()
    def push(self, codes_BNK: Tensor) -> Tensor:
        """Decode N new frames: float32 audio [B, N * samples_per_frame].

        It is that of the frames `lookahead_frames` earlier; silence where there were none.
        """
        num_new = codes_BNK.shape[1]
        if num_new == 0:
            return torch.zeros(len(codes_BNK), 0, dtype=torch.float32, device=codes_BNK.device)
        self._num_heard = [heard + num_new for heard in self._num_heard]
        if num_new == 1 and (self._takes_any or min(self._num_heard) >= self._width):
            self._advance(codes_BNK)
            return self._audio_BR.clone()
        self._count_on_device()
        held_BLK = torch.cat([self._codes_BWK[:, 1:], codes_BNK], dim=1)
        self._codes_BWK.copy_(held_BLK[:, num_new - 1 :])
        return self._decode(held_BLK, num_new)

    @torch.inference_mode(False)
    @torch.no_grad()
    def flush(self) -> Tensor:
        """The audio of the last `lookahead_frames` frames [B, lookahead_frames * samples_per_frame]."""
        if self.lookahead_frames == 0 or not any(self._num_heard):
            return self._audio_BR[:, :0].clone()
        return self._decode(self._codes_BWK[:, 1:], 0)[:, -self.lookahead_frames * self._size :]

    def reset(self, rows: Sequence[int]) -> None:
        """Let these streams begin anew."""
        for row in rows:
            self._num_heard[row] = 0
        if rows:
            self._count_on_device()

    def _count_on_device(self) -> None:
        if self._takes_any:
            self._heard_B.copy_(torch.tensor(self._num_heard))

    def _decode_frame(self, codes_B1K: Tensor) -> None:
        """Decode the frame that waited for this one, in the middle of a window."""
        codes_BWK = torch.cat([self._codes_BWK[:, 1:], codes_B1K], dim=1)
        newest_B = self._heard_B.add_(1) if self._takes_any else None
        audio_BS = self._codec.decode_newest(codes_BWK, 1 + self.lookahead_frames, newest_B)
        self._audio_BR.copy_(audio_BS[:, : self._size])
        self._codes_BWK.copy_(codes_BWK)

    def _decode(self, held_BLK: Tensor, num_new: int) -> Tensor:
        """Decode the newest `num_new` frames of those held, those that wait for their right context aside."""
        held = held_BLK.shape[1]
        size = self._size
        wanted = num_new or self.lookahead_frames
        audio_BR = torch.zeros(len(held_BLK), wanted * size, dtype=torch.float32, device=held_BLK.device)
        for available, rows in self._rows_by_length(held).items():
            ahead = self.lookahead_frames if num_new else 0
            newest = min(wanted + ahead, available)
            audio = self._codec.decode_newest(held_BLK[rows, held - available :], newest)
            end = (newest - ahead) * size
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
