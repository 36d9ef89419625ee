"""Validation losses of each data set and over all, exact over ranks."""

from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from s2s_model.frame_statistics import FrameStatistics
from s2s_model.losses import LossSums
from s2s_model.step_window import is_distributed


class ValOutput(TypedDict):
    """What validation learns of a batch; the losses are sums over `num_frames` valid frames."""

    text_loss: Tensor
    audio_loss: Tensor
    loss: Tensor
    num_frames: Tensor
    statistics: FrameStatistics
    text: list[str]
    text_tokens: Tensor  # [B, T] int64
    text_turns: list[list[tuple[float, float, str]]]  # start and end in seconds
    audio: Tensor  # [B, S] float32, what the agent said
    audio_lens: Tensor
    ceiling_audio: Tensor  # [B, S] float32, the reference through the codec
    ceiling_audio_lens: Tensor
    sample_rate: int


class ValidationLosses:
    """Sums losses by data set over a validation, each a number of frames' worth."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, sums: LossSums, objective: Tensor) -> None:
        """Take in a batch of the data set `name`."""
        mine = self._sums.setdefault(name, {})
        for key, value in {**sums.named(), "loss": objective, "frames": sums.num_frames}.items():
            # Not the default dtype: in bf16-true that is bf16, which counts no further than 256.
            mine[key] = mine.get(key, torch.zeros((), device=value.device, dtype=torch.float32)) + value.detach()

    def log(self, prefix: str, device: torch.device, log: Callable[[str, Tensor], None]) -> None:
        """Log `<prefix>_loss_<dataset>` and so on, and `<prefix>_loss` over all; every rank has to call it."""
        total: dict[str, Tensor] = {}
        for name, keys in self._names_of_all_ranks():
            mine = self._sums.get(name, {})
            sums = torch.stack([mine.get(key, torch.zeros(())).to(device, torch.float32) for key in keys])
            if is_distributed():
                torch.distributed.all_reduce(sums)
            by_key = dict(zip(keys, sums, strict=True))
            total = {key: total[key] + by_key[key] if key in total else by_key[key] for key in keys}
            _log_means(by_key, prefix, f"_{name}", log)
        _log_means(total, prefix, "", log)

    def _names_of_all_ranks(self) -> list[tuple[str, list[str]]]:
        names = {name: sorted(sums) for name, sums in self._sums.items()}
        if is_distributed():
            gathered: list[dict[str, list[str]]] = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(gathered, names)
            names = {name: keys for rank_names in gathered for name, keys in rank_names.items()}
        return sorted(names.items())


def _log_means(sums: dict[str, Tensor], prefix: str, suffix: str, log: Callable[[str, Tensor], None]) -> None:
    frames = sums.get("frames")
    if frames is None or not frames:
        return  # nothing was validated: no figure rather than a NaN
    for key, value in sums.items():
        if key != "frames":
            log(f"{prefix}_{key}{suffix}", value / frames)
