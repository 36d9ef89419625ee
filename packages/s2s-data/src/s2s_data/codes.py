"""Encoding the agent's audio of a Shar once, so that training needn't. Shapes: see :mod:`s2s_data.batch`."""

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
from lhotse.cut import Cut
from lhotse.lazy import LazyJsonlIterator
from lhotse.shar import SharWriter
from lhotse.shar.writers.cut import JsonlShardWriter
from torch import Tensor

from s2s_data.audio import collate_audio, place_of
from s2s_data.errors import DataError
from s2s_data.shar import CUTS, TARGET_AUDIO, TARGET_CODES, Shard, find_shards
from s2s_data.stored_codes import FINGERPRINT


class AudioCodec(Protocol):
    """What encoding asks of a codec."""

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio it takes."""

    @property
    def frame_rate(self) -> float:
        """Frames a second of the codes it makes."""

    @property
    def fingerprint(self) -> str:
        """Names the codec and its weights; it is stored with the codes."""

    def encode(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [B, T, K] of an integer type, and their lengths [B]."""


def encode_shar(
    in_dir: Path | str,
    out_dir: Path | str,
    codec: AudioCodec,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> int:
    """Write a Shar that is ``in_dir`` and the agent's audio as codes of ``codec``.

    Parameters
    ----------
    in_dir
        A Shar with ``target_audio``.
    out_dir
        Where the new one goes: ``in_dir`` itself, or a folder to which the other files are linked (copied
        where the file system has no links). Shards that it has already, of the same codec, are left as they
        are: a run that was stopped goes on.
    codec
        Encodes. Its fingerprint is written into each cut, where the loader compares it with the model's.
    batch_size
        Dialogues encoded at once.
    device
        Where the codec wants its audio.
    progress
        Is told each shard.

    Returns
    -------
    int
        The number of dialogues encoded now.

    Raises
    ------
    DataError
        If the Shar can't be read, or a dialogue has no target audio.

    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    for shard in find_shards(str(in_dir), str(in_dir)):
        manifest = out / Path(shard.paths[CUTS]).name
        if _is_done(manifest, codec.fingerprint):
            progress(f"{manifest}: was encoded before")
            continue
        count = _write_codes(shard, out, codec, batch_size, torch.device(device))
        _link_others(shard, out)
        _write_manifest(Path(shard.paths[CUTS]), manifest, codec.fingerprint)  # last: it marks the shard as done
        progress(f"{manifest}: {count} dialogues")
        total += count
    return total


def _is_done(manifest: Path, fingerprint: str) -> bool:
    if not manifest.exists() or not _codes_file(manifest).exists():
        return False
    return all(cut.get("custom", {}).get(FINGERPRINT) == fingerprint for cut in LazyJsonlIterator(manifest))


def _suffix(manifest: Path) -> str:
    """Return the shard's number as file names have it: ".000000" of "cuts.000000.jsonl.gz"."""
    return manifest.name.removeprefix(CUTS).partition(".jsonl")[0]


def _codes_file(manifest: Path) -> Path:
    return manifest.with_name(f"{TARGET_CODES}{_suffix(manifest)}.tar")


def _write_codes(shard: Shard, out: Path, codec: AudioCodec, batch_size: int, device: torch.device) -> int:
    manifest = out / Path(shard.paths[CUTS]).name
    unfinished = out / "unfinished"
    unfinished.mkdir(exist_ok=True)
    writer = SharWriter(
        str(unfinished),
        fields={TARGET_CODES: "numpy"},
        shard_size=None,
        shard_suffix=_suffix(manifest),
        include_cuts=False,
        warn_unused_fields=False,
    )
    count = 0
    with writer:
        for cut, codes_TK in _encoded(shard.cuts([TARGET_CODES]), codec, batch_size, device):
            frame_s = 1 / codec.frame_rate
            writer.write(cut.attach_tensor(TARGET_CODES, codes_TK.int(), frame_shift=frame_s, temporal_dim=0))
            count += 1
    (unfinished / _codes_file(manifest).name).replace(_codes_file(manifest))
    unfinished.rmdir()
    return count


def _encoded(
    cuts: Iterator[Cut], codec: AudioCodec, batch_size: int, device: torch.device
) -> Iterator[tuple[Cut, Tensor]]:
    while batch := list(islice(cuts, batch_size)):
        for cut in batch:
            if not cut.has_custom(TARGET_AUDIO):
                raise DataError(f"{place_of(cut)} has no {TARGET_AUDIO} to encode: attach it, or take the cut out")
        audio_BS, lens_B = collate_audio(batch, TARGET_AUDIO, codec.sample_rate)
        codes_BTK, code_lens_B = codec.encode(audio_BS.to(device), lens_B.to(device))
        for cut, codes_TK, length in zip(batch, codes_BTK.cpu(), code_lens_B.tolist(), strict=True):
            yield cut, codes_TK[:length]


def _link_others(shard: Shard, out: Path) -> None:
    for field, path in shard.paths.items():
        target = out / Path(path).name
        if field in (CUTS, TARGET_CODES) or target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)


def _write_manifest(old: Path, new: Path, fingerprint: str) -> None:
    unfinished = new.with_name(f"unfinished-{new.name}")
    with JsonlShardWriter(str(unfinished), shard_size=None) as writer:
        for cut in LazyJsonlIterator(old):
            writer.write({**cut, "custom": {**cut.get("custom", {}), FINGERPRINT: fingerprint}})
    unfinished.replace(new)
