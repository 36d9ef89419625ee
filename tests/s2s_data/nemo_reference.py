"""NeMo 3.0's duplex data path, called as its users call it: the reference for parity and for its defects."""

import logging
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lhotse import CutSet
from lhotse.cut import Cut

FRAME_S = 0.08


@dataclass(frozen=True)
class SharedTokenizer:
    """One id a word, the same in every process, under our names of the special ids and under NeMo's."""

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int | None = None

    def text_to_ids(self, text: str) -> list[int]:
        return [3 + zlib.crc32(word.encode()) % 997 for word in text.split()]

    @property
    def pad(self) -> int:
        return self.pad_id

    @property
    def bos(self) -> int:
        return self.bos_id

    @property
    def eos(self) -> int:
        return self.eos_id


def nemo_dataset(
    tokenizer: Any,
    *,
    input_roles: Iterable[str] = ("user",),
    output_roles: Iterable[str] = ("agent",),
    source_sample_rate: int = 16000,
    target_sample_rate: int = 22050,
) -> Any:
    """Return NeMo's `DuplexS2SDataset`."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)  # it complains of a telemetry that isn't set up
    from nemo.collections.speechlm2.data.s2s_dataset import DuplexS2SDataset

    return DuplexS2SDataset(
        tokenizer,
        frame_length=FRAME_S,
        source_sample_rate=source_sample_rate,
        target_sample_rate=target_sample_rate,
        input_roles=list(input_roles),
        output_roles=list(output_roles),
    )


def nemo_batch(cuts: Iterable[Cut], tokenizer: Any, **kwargs: Any) -> dict[str, Any]:
    """Return the batch that NeMo makes of `cuts`."""
    batch: dict[str, Any] = nemo_dataset(tokenizer, **kwargs)[CutSet(list(cuts))]
    return batch


class CutIds:
    """Stands in for the dataset where a test asks only which dialogues a rank gets."""

    def __getitem__(self, cuts: CutSet) -> list[str]:
        return [cut.id for cut in cuts]


def nemo_dataloader(config: dict[str, Any], dataset: Any, *, dp_rank: int = 0, dp_world_size: int = 1) -> Any:
    """Return the dataloader that NeMo's `DataModule` makes for one data-parallel rank."""
    logging.getLogger("nv_one_logger").setLevel(logging.CRITICAL)
    from nemo.collections.common.data.lhotse import get_lhotse_dataloader_from_config

    return get_lhotse_dataloader_from_config(config, global_rank=dp_rank, world_size=dp_world_size, dataset=dataset)
