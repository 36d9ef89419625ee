"""What `predict` answers: audio files, folders of them, Shar folders, and the data sets of a run's config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from s2s_data.config import SourceConfig, validation_sets
from s2s_train.config import AppConfig

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SET = "set:"


@dataclass(frozen=True)
class Heard:
    """A recording of a user."""

    id: str  # of the cut, or the file's name without its end; of several files of one name, with a number
    source: str  # the input it came from
    audio_S: npt.NDArray[np.float32]


def check_inputs(inputs: Sequence[str], cfg: AppConfig | None) -> None:
    """Look for every input, and into the headers of audio files; `cfg` is the run's, None for an export.

    Raises:
        FileNotFoundError: a path isn't there, or a folder has neither audio nor a Shar.
        ValueError: a set that the run's config doesn't have, or files that are no audio, all of them named.
    """
    broken: list[Path] = []
    for given in inputs:
        if given.startswith(SET):
            _set(given, cfg)
        elif not _is_shar(Path(given)):
            broken += [path for path in audio_files(Path(given)) if not _has_audio(path)]
    if broken:
        raise ValueError(f"no audio can be read from {', '.join(map(str, broken))}: mend them or take them away")


def read_inputs(
    inputs: Sequence[str], cfg: AppConfig | None, rate_hz: int, channel: int | None = None
) -> Iterator[Heard]:
    """Yield the recordings of all inputs in order, at `rate_hz`.

    Raises:
        ValueError: audio that can't be read, or a file of several channels with no `channel`.
    """
    taken: set[str] = set()
    for given in inputs:
        for name, audio_S in _read(given, cfg, rate_hz, channel):
            names = chain([name], (f"{name}-{number}" for number in count(2)))
            unique = next(each for each in names if each not in taken)
            taken.add(unique)
            yield Heard(unique, given, audio_S)


def audio_files(path: Path) -> list[Path]:
    """Return the file itself, or the audio files of a folder and those below it, by name.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if path.is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        what = "has no audio files and no Shar (cuts.*.jsonl.gz)" if path.is_dir() else "doesn't exist"
        raise FileNotFoundError(f"{path} {what}: give audio files, folders of them, Shar folders, or {SET}NAME")
    return found


def _read(given: str, cfg: AppConfig | None, rate_hz: int, channel: int | None) -> Iterator[tuple[str, Any]]:
    if given.startswith(SET):
        yield from _read_cuts(given, _set(given, cfg), rate_hz)
    elif _is_shar(Path(given)):
        yield from _read_cuts(given, SourceConfig(shar_path=given), rate_hz)
    else:
        for path in audio_files(Path(given)):
            yield path.stem, _read_file(path, rate_hz, channel)


def _read_cuts(given: str, source: SourceConfig, rate_hz: int) -> Iterator[tuple[str, Any]]:
    from s2s_data.audio import load_audio
    from s2s_data.loader import blend_of
    from s2s_data.sources import once

    for leaf in blend_of(source, given).leaves:
        for ref in once(leaf.source, with_target_audio=False):
            yield ref.cut.id, load_audio(ref.load(), "recording", rate_hz)


def _read_file(path: Path, rate_hz: int, channel: int | None) -> Any:
    import soundfile
    import soxr

    try:
        audio, file_rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    channels = audio.shape[1]
    if channel is None and channels > 1:
        raise ValueError(f"{path} has {channels} channels: say which is the user's with --channel (0 is the left)")
    if channel is not None and channel not in range(channels):
        raise ValueError(f"--channel {channel}: {path} has {channels} channels, the first is 0")
    if not len(audio):
        raise ValueError(f"{path} is empty")
    return soxr.resample(np.ascontiguousarray(audio[:, channel or 0]), file_rate_hz, rate_hz)


def _has_audio(path: Path) -> bool:
    import soundfile

    try:
        return bool(soundfile.info(path).frames)
    except soundfile.LibsndfileError:
        return False


def _is_shar(path: Path) -> bool:
    return path.is_dir() and any(path.glob("cuts.*.jsonl*"))


def _set(given: str, cfg: AppConfig | None) -> SourceConfig:
    name = given.removeprefix(SET)
    if cfg is None:
        raise ValueError(f"{given}: an export knows no data sets: give a run, or the set's Shar folder")
    sets = validation_sets(cfg.data.test_ds, "test_ds") | validation_sets(cfg.data.validation_ds)
    if name not in sets:
        raise ValueError(f"{given}: the run's config has no such set: its sets are {', '.join(sets) or 'none'}")
    return sets[name]
