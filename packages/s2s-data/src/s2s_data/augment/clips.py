"""Audio files from which augmentations draw: noises, room impulse responses. Shapes: ``S`` samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, Recording, RecordingSet, load_manifest
from lhotse.cut import Cut

from s2s_data.augment.resampling import resampled
from s2s_data.dialogue import FloatArray
from s2s_data.errors import DataError, UnreadableCutError

AUDIO_SUFFIXES = (".wav", ".flac")
MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".yaml", ".yaml.gz")


@dataclass(frozen=True)
class Clip:
    """One audio file, or the part of one that a cut names; of several channels, the first."""

    cut: Cut
    where: str

    @property
    def duration_s(self) -> float:
        """The clip's length in seconds."""
        return float(self.cut.duration)

    def load(self, rate_hz: int, offset_s: float = 0.0, duration_s: float | None = None) -> FloatArray:
        """Return [S] float32 at ``rate_hz``, from ``offset_s`` on for ``duration_s`` (to the end if None).

        Raises :class:`UnreadableCutError` if the file can't be read or has no audio: the dialogue is skipped.
        """
        try:
            part = self.cut.truncate(offset=offset_s, duration=duration_s)
            audio_S = np.asarray(part.load_audio()[0], dtype=np.float32)
        except Exception as error:  # lhotse raises what its audio backends do, of any kind
            raise UnreadableCutError(
                f"{self.where}: can't read {self.cut.id}: {type(error).__name__}: {error}"
            ) from error
        if len(audio_S) == 0:
            raise UnreadableCutError(f"{self.where}: {self.cut.id} has no audio: take it out")
        return resampled(audio_S, self.cut.sampling_rate, rate_hz)


@dataclass(frozen=True)
class Clips:
    """The files that a config names. They are opened when they are drawn: there may be many thousands."""

    items: tuple[str | Cut, ...]
    where: str  # the config key

    @classmethod
    def find(cls, files: Any, where: str) -> "Clips":
        """Find what ``files`` names: a folder, a list of files, or a lhotse manifest.

        Raises :class:`DataError` if that is nothing, or isn't there.
        """
        if isinstance(files, str | Path):
            path = Path(files)
            items = _of_manifest(path, where) if path.name.endswith(MANIFEST_SUFFIXES) else _of_folder(path, where)
        elif isinstance(files, Sequence) and files:
            items = _of_list(files, where)
        else:
            raise DataError(f"{where} is {files}, but must be a folder, a list of audio files, or a lhotse manifest")
        return cls(items, where)

    def draw(self, rng: np.random.Generator) -> Clip:
        """Draw one; each has the same chance.

        Raises :class:`UnreadableCutError` if the file can't be read.
        """
        item = self.items[rng.integers(len(self.items))]
        if not isinstance(item, str):
            return Clip(item, self.where)
        try:
            return Clip(Recording.from_file(item, recording_id=item).to_cut(), self.where)
        except Exception as error:  # as above
            raise UnreadableCutError(f"{self.where}: can't read {item}: {type(error).__name__}: {error}") from error


def _of_folder(folder: Path, where: str) -> tuple[str, ...]:
    if not folder.is_dir():
        raise DataError(f"{where}: {folder} is no folder: name one, a list of audio files, or a lhotse manifest")
    # sorted, so that a seed draws the same file on every file system
    found = tuple(sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES))
    if not found:
        raise DataError(f"{where}: {folder} has no {' or '.join(AUDIO_SUFFIXES)} file")
    return found


def _of_list(files: Sequence[Any], where: str) -> tuple[str, ...]:
    for file in files:
        if not Path(file).is_file():
            raise DataError(f"{where}: there is no file {file}")
    return tuple(str(file) for file in files)


def _of_manifest(path: Path, where: str) -> tuple[Cut, ...]:
    try:
        manifest = load_manifest(path)
    except Exception as error:  # as above
        raise DataError(f"{where}: can't read {path}: {type(error).__name__}: {error}") from error
    if not isinstance(manifest, CutSet | RecordingSet) or len(manifest) == 0:
        raise DataError(f"{where}: {path} must be a lhotse manifest of recordings or cuts, with one at least")
    return tuple(item if isinstance(manifest, CutSet) else item.to_cut() for item in manifest)
