"""Encoding the agent's audio of Shars once, so that training needn't. Shapes: see :mod:`s2s_data.batch`.

A shard's codes are made in a folder beside the Shar, ``x.unfinished`` (in the Shar itself lhotse would take it for a
field), and renamed into place last: a shard with codes is a finished one.
"""

import contextlib
import glob
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TypeVar

import torch
from lhotse.array import TemporalArray
from lhotse.cut import Cut
from lhotse.lazy import LazyJsonlIterator
from lhotse.shar import SharWriter
from lhotse.shar.utils import to_shar_placeholder
from lhotse.shar.writers.cut import JsonlShardWriter
from torch import Tensor

from s2s_data.audio import FloatArray, load_audio, pad_rows, place_of
from s2s_data.errors import DataError, UnreadableCutError, unknown_name
from s2s_data.shar import CUTS, TARGET_AUDIO, TARGET_CODES, Shard, find_shards
from s2s_data.stored_codes import FINGERPRINT
from s2s_data.wording import counted

ON_ERROR = ("skip", "stop")

_SUFFIX = re.compile(r"\.(?:tar|jsonl)(?:\.gz)?$")

_T = TypeVar("_T")


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


@dataclass(frozen=True)
class EncodeOptions:
    """How codes are made."""

    # Most audio in a batch: dialogues x the longest one, in seconds. A longer dialogue is a batch of its own.
    batch_duration_s: float = 120.0
    # Most dialogues in a batch.
    batch_size: int = 64
    # Where the codec wants its audio.
    device: str = "cpu"
    # This process encodes the shards whose number leaves ``rank`` when divided by ``world_size``.
    rank: int = 0
    world_size: int = 1
    # Replace codes of another codec.
    overwrite: bool = False
    # At a dialogue whose audio can't be read: "stop" with an error, or "skip" it and store no codes for it.
    on_error: str = "stop"

    def __post_init__(self) -> None:
        """Raise :class:`DataError` for a value that can't be."""
        if not 0 <= self.rank < self.world_size:
            raise DataError(
                f"rank is {self.rank}, but must be from 0 to world_size - 1, which is {self.world_size - 1}"
            )
        if self.batch_duration_s <= 0 or self.batch_size < 1:
            raise DataError(
                f"batch_duration_s is {self.batch_duration_s} and batch_size {self.batch_size}, but both must be "
                "above 0"
            )
        if self.on_error not in ON_ERROR:
            raise DataError(f"on_error: {unknown_name(self.on_error, ON_ERROR)}")


@dataclass
class EncodeSummary:
    """What was encoded now, by this process."""

    num_shards: int = 0
    num_shards_kept: int = 0  # encoded by an earlier run
    num_dialogues: int = 0
    audio_s: float = 0.0
    wall_s: float = 0.0
    unreadable: list[str] = field(default_factory=list)  # the messages of dialogues without codes

    def lines(self) -> list[str]:
        """Return the summary for a reader."""
        speed = self.audio_s / self.wall_s if self.wall_s else 0.0
        kept = f", {self.num_shards_kept} were encoded before" if self.num_shards_kept else ""
        lines = [
            f"encoded {counted(self.num_dialogues, 'dialogue')}, {self.audio_s / 3600:.2f} h, in "
            f"{counted(self.num_shards, 'shard')}{kept}; {self.wall_s:.0f} s, {speed:.0f} audio-seconds a second"
        ]
        if self.unreadable:
            lines.append(f"{counted(len(self.unreadable), 'dialogue')} can't be read and got no codes")
        return lines


@dataclass(frozen=True)
class Reporter:
    """Who is told what while codes are made."""

    start: Callable[[int], None] = lambda num_dialogues: None  # how many there are to encode
    encoded: Callable[[int, float], None] = lambda num_dialogues, audio_s: None  # after each batch
    say: Callable[[str], None] = lambda line: None  # of each shard, and of each dialogue that can't be read


@dataclass(frozen=True)
class EncodeJob:
    """A shard to encode, and where it goes."""

    shard: Shard  # without codes
    out_dir: Path
    names: Mapping[str, str]  # the new files' names, by field

    @property
    def manifest(self) -> Path:
        """The new shard's cuts."""
        return self.out_dir / self.names[CUTS]

    @property
    def suffix(self) -> str:
        """The shard's number as file names have it: ".000000" of "cuts.000000.jsonl.gz"."""
        return _SUFFIX.sub("", self.names[CUTS]).removeprefix(CUTS)

    @property
    def codes(self) -> Path:
        """The new shard's codes. Where they are, the shard is finished."""
        return self.out_dir / f"{TARGET_CODES}{self.suffix}.tar"


def encode_shar(
    in_dir: Path | str,
    out_dir: Path | str,
    codec: AudioCodec,
    options: EncodeOptions | None = None,
    reporter: Reporter | None = None,
) -> EncodeSummary:
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
    options
        Batches, device, and this process's share of the shards.
    reporter
        Is told of the progress.

    Raises
    ------
    DataError
        If the Shar can't be read, a dialogue has no target audio, or shards hold codes of another codec.

    """
    return encode_shards(jobs_of(str(in_dir), Path(out_dir), str(in_dir)), codec, options, reporter)


def jobs_of(shar_path: str | Mapping[str, Any], out_dir: Path, where: str) -> list[EncodeJob]:
    """Return the shards of a Shar, as :func:`~s2s_data.shar.find_shards` finds them, as jobs.

    Codes that are there already are left out: a folder in which some shards are encoded has fewer of them. Raises
    :class:`DataError` if there is no Shar, or its files aren't local.
    """
    if isinstance(shar_path, Mapping):
        files = {name: paths for name, paths in shar_path.items() if name != TARGET_CODES}
        jobs = [
            EncodeJob(shard, out_dir, {name: _numbered(name, path, number) for name, path in shard.paths.items()})
            for number, shard in enumerate(find_shards(files, where))
        ]
    else:
        jobs = [
            EncodeJob(shard, out_dir, {name: Path(path).name for name, path in shard.paths.items()})
            for shard in find_shards(_files_without_codes(shar_path) or shar_path, where)
        ]
    for path in (path for job in jobs for path in job.shard.paths.values()):
        if not Path(path).is_file():
            raise DataError(f"{where}: {path} isn't a local file, and encoding links or copies it: fetch it first")
    return jobs


def encode_shards(
    jobs: Sequence[EncodeJob],
    codec: AudioCodec,
    options: EncodeOptions | None = None,
    reporter: Reporter | None = None,
) -> EncodeSummary:
    """Encode this process's share of ``jobs``: see :func:`encode_shar`."""
    options, reporter = options or EncodeOptions(), reporter or Reporter()
    own = jobs[options.rank :: options.world_size]
    todo = [job for job in own if not _is_done(job, codec.fingerprint, options.overwrite)]
    reporter.start(sum(job.shard.num_cuts() for job in todo))
    summary = EncodeSummary(num_shards_kept=len(own) - len(todo))
    started = perf_counter()
    for job in todo:
        num_before = summary.num_dialogues
        _encode_shard(job, codec, options, reporter, summary)
        summary.num_shards += 1
        reporter.say(f"{job.codes}: {counted(summary.num_dialogues - num_before, 'dialogue')}")
    summary.wall_s = perf_counter() - started
    return summary


def _files_without_codes(folder: str) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for path in sorted(Path(folder).glob("*")):
        name = path.name.partition(".")[0]
        if _SUFFIX.search(path.name) and name and name != TARGET_CODES:
            files.setdefault(name, []).append(glob.escape(str(path)))
    return files


def _numbered(name: str, path: str, number: int) -> str:
    ending = _SUFFIX.search(path)
    return f"{name}.{number:06d}{ending.group() if ending else '.tar'}"


def _is_done(job: EncodeJob, fingerprint: str, overwrite: bool) -> bool:
    if not job.codes.exists() or not job.manifest.exists():
        return False
    found = {cut.get("custom", {}).get(FINGERPRINT) for cut in LazyJsonlIterator(job.manifest)}
    if found == {fingerprint}:
        return True
    if overwrite or not found:
        return False
    (other, *_) = found - {fingerprint}
    made_by = f"the codec {other}" if other else "a codec that isn't named"
    raise DataError(
        f"{job.codes} holds codes of {made_by}, but the ones to be made are of {fingerprint}: name another folder, "
        "or give --overwrite to replace them"
    )


def _encode_shard(
    job: EncodeJob, codec: AudioCodec, options: EncodeOptions, reporter: Reporter, summary: EncodeSummary
) -> None:
    out = job.out_dir.absolute()
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f"{out.name}.unfinished") / f"shard{job.suffix}"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    skipped = [name for name in job.shard.paths if name not in (CUTS, TARGET_AUDIO)]
    encoded = _encoded(job.shard.cuts(skipped), codec, options, reporter, summary)
    placeholders = _write_codes(unfinished, job, encoded, codec)
    if not (unfinished / job.codes.name).exists():
        raise DataError(f"{job.shard.paths[CUTS]} has no dialogue to encode: take the shard out")
    _link_others(job, unfinished)
    _write_manifest(Path(job.shard.paths[CUTS]), unfinished / job.manifest.name, codec.fingerprint, placeholders)
    job.codes.unlink(missing_ok=True)  # those of another codec, which the new manifest must not name as ours
    (unfinished / job.manifest.name).replace(job.manifest)
    (unfinished / job.codes.name).replace(job.codes)
    unfinished.rmdir()
    with contextlib.suppress(OSError):  # other ranks are at work there
        unfinished.parent.rmdir()


def _write_codes(
    folder: Path, job: EncodeJob, encoded: Iterable[tuple[Cut, Tensor | None]], codec: AudioCodec
) -> list[TemporalArray | None]:
    """Write the codes and return what stands for them in each cut of the manifest, None where there are none."""
    placeholders: list[TemporalArray | None] = []
    writer = SharWriter(
        str(folder),
        fields={TARGET_CODES: "numpy"},
        shard_size=None,
        shard_suffix=job.suffix,
        include_cuts=False,
        warn_unused_fields=False,
    )
    with writer:
        for cut, codes_TK in encoded:
            if codes_TK is None:
                (cut.custom or {}).pop(TARGET_CODES, None)  # what stands for other codes
                writer.write(cut)
                placeholders.append(None)
            else:
                coded = cut.attach_tensor(
                    TARGET_CODES, codes_TK.int().numpy(), frame_shift=1 / codec.frame_rate, temporal_dim=0
                )
                writer.write(coded)
                placeholders.append(to_shar_placeholder(getattr(coded, TARGET_CODES)))
    return placeholders


def _encoded(
    cuts: Iterable[Cut], codec: AudioCodec, options: EncodeOptions, reporter: Reporter, summary: EncodeSummary
) -> Iterator[tuple[Cut, Tensor | None]]:
    """Yield the cuts in their order, each with its codes [T, K]; with None if its audio can't be read."""
    batches = _batches(cuts, options)
    for batch in _ahead(_load(batch, codec.sample_rate, options.on_error) for batch in batches):
        readable = [(cut, audio) for cut, audio in batch if not isinstance(audio, UnreadableCutError)]
        codes = iter(_encode(readable, codec, options.device) if readable else [])
        for cut, audio in batch:
            if isinstance(audio, UnreadableCutError):
                summary.unreadable.append(str(audio))
                reporter.say(str(audio))
                yield cut, None
            else:
                yield cut, next(codes)
        audio_s = sum(cut.duration for cut, _ in readable)
        summary.num_dialogues += len(readable)
        summary.audio_s += audio_s
        reporter.encoded(len(batch), audio_s)


def _batches(cuts: Iterable[Cut], options: EncodeOptions) -> Iterator[list[Cut]]:
    batch: list[Cut] = []
    for cut in cuts:
        longest_s = max(item.duration for item in [*batch, cut])
        if len(batch) == options.batch_size or (batch and longest_s * (len(batch) + 1) > options.batch_duration_s):
            yield batch
            batch = []
        batch.append(cut)
    if batch:
        yield batch


def _load(cuts: Sequence[Cut], sample_rate_hz: int, on_error: str) -> list[tuple[Cut, FloatArray | UnreadableCutError]]:
    loaded: list[tuple[Cut, FloatArray | UnreadableCutError]] = []
    for cut in cuts:
        if not cut.has_custom(TARGET_AUDIO):
            raise DataError(f"{place_of(cut)} has no {TARGET_AUDIO} to encode: attach it, or take the cut out")
        try:
            loaded.append((cut, load_audio(cut, TARGET_AUDIO, sample_rate_hz)))
        except UnreadableCutError as error:
            if on_error == "stop":
                raise
            loaded.append((cut, error))
    return loaded


def _ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yield ``items``, making each in a thread while the one before is worked on."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, iterator, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, iterator, None)
            yield item


@torch.no_grad()
def _encode(batch: Sequence[tuple[Cut, FloatArray]], codec: AudioCodec, device: str) -> list[Tensor]:
    audio_BS, lens_B = pad_rows([audio_S for _, audio_S in batch])
    codes_BTK, code_lens_B = codec.encode(audio_BS.to(device), lens_B.to(device))
    if codes_BTK.dim() != 3 or codes_BTK.is_floating_point():
        raise DataError(
            f"the codec {codec.fingerprint} made {codes_BTK.dtype} of shape {list(codes_BTK.shape)}, but codes must "
            "be integers of shape [batch, frames, codebooks]"
        )
    return [codes_TK[:length] for codes_TK, length in zip(codes_BTK.cpu(), code_lens_B.tolist(), strict=True)]


def _link_others(job: EncodeJob, unfinished: Path) -> None:
    for name, path in job.shard.paths.items():
        target = job.out_dir / job.names[name]
        if name == CUTS or target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            copied = unfinished / target.name
            shutil.copyfile(path, copied)
            copied.replace(target)


def _write_manifest(old: Path, new: Path, fingerprint: str, placeholders: Sequence[TemporalArray | None]) -> None:
    with JsonlShardWriter(str(new), shard_size=None) as writer:
        for cut, placeholder in zip(LazyJsonlIterator(old), placeholders, strict=True):
            custom = {**cut.get("custom", {}), FINGERPRINT: fingerprint}
            custom.pop(TARGET_CODES, None)  # what stands for other codes
            if placeholder is not None:
                custom[TARGET_CODES] = placeholder.to_dict()
            writer.write({**cut, "custom": custom})
