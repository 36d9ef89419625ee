"""The dialogues of a validation on disk: wavs to listen to, texts and scores beside them.

``<run>/samples/step_<N>/scores.json`` holds the metrics; ``step_<N>/<dataset>/`` holds ``dialogues.jsonl``, one line a
dialogue, and for the kept ones ``<cut_id>.wav`` (left the user, right the generated agent) and
``<cut_id>.reference.wav`` (the reference agent).
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from s2s_eval.asr import Samples
from s2s_eval.dialogue_scores import DialogueScore, own_scores
from s2s_eval.resampling import at_rate

SCORES_FILE = "scores.json"
DIALOGUES_FILE = "dialogues.jsonl"
REFERENCE_SUFFIX = ".reference"  # of a reference's wav
RESERVED = re.compile(rf"{re.escape(SCORES_FILE)}|report\.html|.*{re.escape(REFERENCE_SUFFIX)}|")  # names taken
MAX_NAME_BYTES = 120  # what file systems take is 255, with suffixes and a hash


class Wavs(NamedTuple):
    """The audio files of one dialogue."""

    stereo: Path  # left the user, right the generated agent
    reference: Path


@dataclass(frozen=True)
class SampleAudio:
    """The audio of one dialogue, all mono [S] and starting together."""

    user: Samples
    user_sample_rate: int
    generated: Samples
    reference: Samples
    reference_sample_rate: int
    sample_rate: int  # of the generated audio, and of the files


class SampleKeeper:
    """Holds the audio of a few dialogues a data set: the same ones at every validation, on any number of ranks.

    Kept are the dialogues whose ids' hashes are lowest, so that no kind of dialogue is preferred.
    """

    def __init__(self, max_per_dataset: int) -> None:
        self._max_per_dataset = max_per_dataset
        self._audio: dict[str, dict[str, SampleAudio]] = {}

    def add(self, dataset: str, cut_id: str, audio: SampleAudio) -> None:
        """Offer a dialogue; it, or another, is let go where there are too many."""
        kept = self._audio.setdefault(dataset, {})
        kept[cut_id] = audio
        for surplus in set(kept) - set(kept_ids(kept, self._max_per_dataset)):
            del kept[surplus]

    def get(self, dataset: str, cut_id: str) -> SampleAudio | None:
        """Return the audio, if this rank holds it."""
        return self._audio.get(dataset, {}).get(cut_id)


def kept_ids(cut_ids: Sequence[str] | dict[str, Any], max_per_dataset: int) -> list[str]:
    """Return the ids whose audio is written."""
    return sorted(set(cut_ids), key=lambda cut_id: _sha1(cut_id).digest())[:max_per_dataset]


def step_dir(run_dir: Path, step: int) -> Path:
    """Return the folder of one validation."""
    return run_dir / "samples" / f"step_{step}"


def write_audio(folder: Path, dialogues: Sequence[DialogueScore], keeper: SampleKeeper, max_per_dataset: int) -> None:
    """Write the wavs of those dialogues to keep that this rank holds. ``dialogues`` are those of all ranks."""
    for dataset, members in _by_dataset(dialogues).items():
        for cut_id in kept_ids([dialogue.cut_id for dialogue in members], max_per_dataset):
            audio = keeper.get(dataset, cut_id)
            if audio is not None:
                _write_wavs(wav_paths(folder, dataset, cut_id), audio)


def wav_paths(folder: Path, dataset: str, cut_id: str) -> Wavs:
    """Return where a dialogue's audio is in the folder of a validation, if it was kept."""
    stem = folder / _file_name(dataset) / _file_name(cut_id)
    return Wavs(stem.with_name(f"{stem.name}.wav"), stem.with_name(f"{stem.name}{REFERENCE_SUFFIX}.wav"))


def write_scores(
    folder: Path,
    step: int,
    dialogues: Sequence[DialogueScore],
    metrics: dict[str, float],
    max_per_dataset: int,
    about: dict[str, str],
) -> None:
    """Write the texts and scores of all dialogues (one rank does it).

    ``about`` says how they were computed; its ``language`` ("en" without it) is that of the texts. What isn't finite,
    such as a perplexity without bound, is written as null. The metrics come last: where they are, all is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    language = about.get("language", "en")
    for dataset, members in _by_dataset(dialogues).items():
        kept = set(kept_ids([dialogue.cut_id for dialogue in members], max_per_dataset))
        path = folder / _file_name(dataset) / DIALOGUES_FILE
        path.parent.mkdir(exist_ok=True)
        records = (
            _record(dialogue, dialogue.cut_id in kept, language) | _unscored(dataset, metrics) for dialogue in members
        )
        path.write_text("".join(json.dumps(finite(record), allow_nan=False) + "\n" for record in records))
    # the folder may hold others, of a validation of this step that came before
    datasets = sorted({_file_name(dialogue.dataset) for dialogue in dialogues})
    scores = finite({"step": step, "metrics": metrics, "about": about, "datasets": datasets})
    unfinished = folder / f"{SCORES_FILE}.part"
    unfinished.write_text(json.dumps(scores, indent=1, allow_nan=False) + "\n")
    unfinished.replace(folder / SCORES_FILE)


def finite(value: Any) -> Any:
    """Return plain data with None for each number that isn't finite: JSON has none of those."""
    if isinstance(value, dict):
        return {key: finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _by_dataset(dialogues: Sequence[DialogueScore]) -> dict[str, list[DialogueScore]]:
    grouped: dict[str, list[DialogueScore]] = {}
    for dialogue in dialogues:
        grouped.setdefault(dialogue.dataset, []).append(dialogue)
    return grouped


def _record(dialogue: DialogueScore, has_audio: bool, language: str) -> dict[str, Any]:
    record = asdict(dialogue)
    for key in ("turns", "generated_turns"):
        record[key] = [turn._asdict() for turn in getattr(dialogue, key)]
    name = _file_name(dialogue.cut_id)
    return record | {
        "wav": f"{name}.wav" if has_audio else None,
        "reference_wav": f"{name}{REFERENCE_SUFFIX}.wav" if has_audio else None,
        **own_scores(dialogue, language),
    }


def _unscored(dataset: str, metrics: dict[str, float]) -> dict[str, None]:
    """Return null for the shares of right answers of which the data set has no figure (no recogniser)."""
    shares = ("answer_accuracy", "answer_accuracy_text")
    return {name: None for name in shares if f"val_{name}_{dataset}" not in metrics}


def _write_wavs(wavs: Wavs, audio: SampleAudio) -> None:
    wavs.stereo.parent.mkdir(parents=True, exist_ok=True)
    rate = audio.sample_rate
    write_stereo(wavs.stereo, audio.user, audio.user_sample_rate, audio.generated, rate)
    reference = at_rate(audio.reference, audio.reference_sample_rate, rate)
    soundfile.write(wavs.reference, reference, rate, subtype="PCM_16")


def write_stereo(path: Path, user_S: Samples, user_rate_hz: int, agent_S: Samples, rate_hz: int) -> None:
    """Write a wav with the user on the left and the agent on the right, at the agent's rate."""
    user_S = at_rate(user_S, user_rate_hz, rate_hz)
    stereo = np.zeros((max(len(user_S), len(agent_S)), 2), np.float32)
    stereo[: len(user_S), 0], stereo[: len(agent_S), 1] = user_S, agent_S
    soundfile.write(path, stereo, rate_hz, subtype="PCM_16")


def _file_name(name: str) -> str:
    """Return a name for the file system, one that stays in its folder.

    An id with other characters, or too long, or with the name of another file gets a hash, so that no two meet.
    """
    safe = re.sub(r"[^\w.-]|^\.", "_", name)
    short = safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if short == name and not RESERVED.fullmatch(name):
        return name
    return f"{short}-{_sha1(name).hexdigest()[:8]}"


def _sha1(name: str) -> "hashlib._Hash":
    # half a character, which a manifest may have, has no UTF-8
    return hashlib.sha1(name.encode(errors="surrogatepass"), usedforsecurity=False)
