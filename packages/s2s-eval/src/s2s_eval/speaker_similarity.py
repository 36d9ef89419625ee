"""How much the generated agent's voice resembles the reference's: the cosine of two speaker embeddings."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from s2s_eval.asr import Samples, looks_like_path
from s2s_eval.lifecycle import HeldModel, LazyModel
from s2s_eval.resampling import at_rate
from s2s_eval.speech_segments import only_speech, speech_segments

NEMO = "nemo:"


class SpeakerModel(HeldModel, Protocol):
    """A loaded speaker encoder."""

    sample_rate_hz: int

    def embed(self, audio_S: Samples) -> Samples:
        """Return the embedding [H], of length 1, of one audio [S] at ``sample_rate_hz``, never empty."""
        ...


class SpeakerSimilarity(LazyModel[SpeakerModel]):
    """Compares voices by one of:

    ========================== ====================================================================================
    ``none``                   no similarity
    ``resemblyzer``            the GE2E encoder (Wan et al., 2018) that the package Resemblyzer ships
    ``/x.nemo``, ``nemo:name`` a NeMo speaker model, by file or name, such as ``nemo:titanet_large``
    ========================== ====================================================================================

    See :class:`s2s_eval.lifecycle.LazyModel` for :meth:`use_device`, :meth:`release` and :meth:`close`.
    """

    def __init__(
        self, speaker_similarity: str, *, silence_dbfs: float = -50.0, device: str = "auto", keep: str = "auto"
    ) -> None:
        """Load nothing yet. Raises ValueError for an unknown value, and where its library or file is missing."""
        super().__init__(f"speaker_similarity={speaker_similarity}", device, keep)
        value = speaker_similarity.strip()
        self.speaker_similarity = f"{NEMO}{value}" if value.endswith(".nemo") and NEMO not in value else value
        self._silence_dbfs = silence_dbfs
        _check(self.speaker_similarity)

    @property
    def is_none(self) -> bool:
        """Whether similarity scoring is off."""
        return self.speaker_similarity == "none"

    def score(
        self,
        generated: Sequence[Samples],
        references: Sequence[Samples],
        generated_rate: int,
        reference_rate: int,
    ) -> list[float | None]:
        """Return the cosine (-1 to 1) of each generated audio and its reference, None where either is silent.

        Audios are 1-D, rates in Hz. Only audible parts are compared.
        """
        scores: list[float | None] = [None] * len(generated)
        if self.is_none:
            return scores
        for i, (ours, theirs) in enumerate(zip(generated, references, strict=True)):
            voices = [(self._audible(ours, generated_rate), generated_rate)]
            voices += [(self._audible(theirs, reference_rate), reference_rate)]
            if all(len(audio) for audio, _ in voices):
                with self._running() as model:
                    left, right = (model.embed(at_rate(audio, rate, model.sample_rate_hz)) for audio, rate in voices)
                scores[i] = float(np.dot(left, right))
        return scores

    def _audible(self, audio_S: Samples, sample_rate: int) -> Samples:
        samples = at_rate(audio_S, sample_rate, sample_rate)
        return only_speech(samples, sample_rate, speech_segments(samples, sample_rate, self._silence_dbfs))

    def _load(self, device: str) -> SpeakerModel:
        _check(self.speaker_similarity)
        if self.speaker_similarity == "resemblyzer":
            from s2s_eval.speakers_resemblyzer import Resemblyzer

            return Resemblyzer(device)
        from s2s_eval.speakers_nemo import NemoSpeakers

        return NemoSpeakers(self.speaker_similarity.removeprefix(NEMO), device)


def _check(value: str) -> None:
    if value == "none":
        return
    if value == "resemblyzer":
        # its pip dependency webrtcvad needs a compiler, and nothing here needs webrtcvad
        commands = {"librosa": "pip install 's2s-eval[speakers]'", "resemblyzer": "pip install --no-deps Resemblyzer"}
    elif value.startswith(NEMO) and value != NEMO:
        commands = {"nemo": "pip install 'nemo_toolkit[asr]'"}
    else:
        raise ValueError(
            f"unknown speaker_similarity={value!r}: known are none, resemblyzer, /x.nemo, nemo:<pretrained name>"
        )
    missing = [name for name in commands if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"speaker_similarity={value} needs {' and '.join(missing)}, not installed in this environment: run "
            + " and ".join(f"`{commands[name]}`" for name in missing)
            + ", or set speaker_similarity=none"
        )
    model = value.removeprefix(NEMO)
    if value.startswith(NEMO) and (model.endswith(".nemo") or looks_like_path(model)):
        path = Path(model).expanduser()
        if not path.is_file():
            raise ValueError(f"speaker_similarity={value}: there is no NeMo file {path}")
