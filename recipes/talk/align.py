"""Give each word of the users the time at which a recogniser hears it: `data.spread_source_text` places text by it.

    hatch run recipe:align talk/encoder.nemo talk/corpus/*

Spread evenly over its turn a text stands before or behind what is heard, so a model can't know where its next piece
belongs. The manifests' supervisions get lhotse's `alignment["word"]`, 0.16 s before the word is heard: about when it is
said. Of a word that is misheard the time lies between its neighbours', and its score is 0 instead of 1. What is aligned
already stays. Exit code 2: something is missing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse.serialization import load_jsonl
from torch import Tensor

from recipes.talk.train_encoder import load_recogniser, spoken
from s2s_data.audio import load_audio, pad_rows
from s2s_data.roles import USER
from s2s_data.shar import CUTS, RECORDING, Shard

BATCH = 32  # dialogues
BEFORE_S, BEHIND_S = 0.16, 0.8  # of a turn: where words of it may be heard
LATE_S = 0.16  # a recogniser that hears nothing ahead hears a word about so late
USER_ERROR = 2  # exit code, as argparse's own


def main(arguments: Sequence[str] | None = None) -> int:
    """Align what isn't yet, and tell how much was heard; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="recipe:align", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recogniser", type=Path, help="a NeMo CTC model, as recipe:encoder writes it")
    parser.add_argument("shars", type=Path, nargs="+", metavar="SHAR", help="folders with cuts.*.jsonl.gz")
    parser.add_argument("--rank", type=int, default=0, help="which of the processes this is, from 0 on (0)")
    parser.add_argument("--world-size", type=int, default=1, help="processes that share the shards (1)")
    args = parser.parse_args(arguments)
    if not 0 <= args.rank < args.world_size:
        parser.error(f"--rank is {args.rank}: it must be from 0 to --world-size - 1, which is {args.world_size - 1}")
    try:
        align(args.recogniser, args.shars, args.rank, args.world_size)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def align(recogniser: Path, shars: Sequence[Path], rank: int = 0, world_size: int = 1) -> None:
    """Align the shards that aren't yet, of each set those whose number leaves `rank` when divided by `world_size`.

    Raises:
        FileNotFoundError: no recogniser, or a folder without manifests.
    """
    shards = {}
    for shar in shars:
        shards[shar] = sorted(shar.glob("cuts.*.jsonl.gz"))
        if not shards[shar]:
            raise FileNotFoundError(f"{shar}: no cuts.*.jsonl.gz there; give the folder of a Shar")
    listener: Listener | None = None
    for shar, manifests in shards.items():
        num_words = num_heard = 0
        for manifest in manifests[rank::world_size]:
            cuts = list(load_jsonl(manifest))
            if all(is_aligned(turn) for cut in cuts for turn in turns_of(cut)):
                continue
            listener = listener or Listener(recogniser)
            for cut, heard in zip(cuts, listener.words(manifest), strict=True):
                for turn in turns_of(cut):
                    turn["alignment"] = {"word": times(turn, heard)}
                    num_words += len(turn["alignment"]["word"])
                    num_heard += sum(score for *_, score in turn["alignment"]["word"])
            _write(manifest, cuts)
        if num_words:
            print(f"{shar}: {num_words} words, {100 * num_heard / num_words:.1f} % heard as they are", flush=True)


def turns_of(cut: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the user says in a cut, as its manifest has it."""
    return [turn for turn in cut["supervisions"] if turn["speaker"] == USER]


def is_aligned(turn: Mapping[str, Any]) -> bool:
    """Whether a turn has times of all its words, by a recogniser."""
    words = (turn.get("alignment") or {}).get("word", [])
    return len(words) == len(turn["text"].split()) and all(len(word) > 3 and word[3] is not None for word in words)


class Word(NamedTuple):
    """A word that was heard, and from when to when."""

    text: str
    start_s: float
    end_s: float


class Listener:
    """A CTC model that hears dialogues."""

    def __init__(self, path: Path) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_recogniser(path, self._device).eval()
        self._labels = list(self._model.decoder.vocabulary)
        features = self._model.cfg.preprocessor
        self._rate_hz = int(features.sample_rate)
        self._frame_s = float(features.window_stride * self._model.encoder.subsampling_factor)

    def words(self, manifest: Path) -> Iterator[list[Word]]:
        """What is heard in each cut of a shard, in their order."""
        recordings = manifest.with_name(manifest.name.replace("cuts.", "recording.").replace(".jsonl.gz", ".tar"))
        shard = Shard({CUTS: str(manifest), RECORDING: str(recordings)}).cuts()
        with ThreadPoolExecutor() as decoders:
            while cuts := list(islice(shard, BATCH)):
                audio = decoders.map(lambda cut: load_audio(cut, RECORDING, self._rate_hz), cuts)
                labels_BT, frames_B = self._listen(*pad_rows(list(audio)))
                for labels_T, num_frames in zip(labels_BT.tolist(), frames_B.tolist(), strict=True):
                    yield heard_words(labels_T[:num_frames], self._labels, self._frame_s)

    @torch.inference_mode()
    def _listen(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            log_probs_BTV, frames_B, _ = self._model(
                input_signal=audio_BS.to(self._device), input_signal_length=lens_B.to(self._device)
            )
        return log_probs_BTV.argmax(dim=2).cpu(), frames_B.cpu()


def heard_words(labels_T: Sequence[int], labels: Sequence[str], frame_s: float) -> list[Word]:
    """The words that a CTC model's likeliest labels say; the label behind the last one is none."""
    words: list[Word] = []
    before = len(labels)
    for frame, label in enumerate(labels_T):
        if label not in (before, len(labels)):
            piece, end_s = labels[label], (frame + 1) * frame_s
            if piece.startswith(" ") or not words:
                words.append(Word(piece.strip(), frame * frame_s, end_s))
            else:
                words[-1] = Word(words[-1].text + piece, words[-1].start_s, end_s)
        before = label
    return words


def times(turn: Mapping[str, Any], heard: Sequence[Word]) -> list[tuple[str, float, float, float]]:
    """Each word of a turn: its text, start and duration in seconds, and 1 if it was heard as it is, else 0.

    Args:
        turn: of a manifest, with text, start and duration.
        heard: what was heard in its recording.
    """
    from kaldialign import align as align_words

    start_s, end_s = turn["start"], turn["start"] + turn["duration"]
    near = [word for word in heard if start_s - BEFORE_S <= word.start_s < end_s + BEHIND_S]
    words = turn["text"].split()
    owners = [i for i, word in enumerate(words) for _ in spoken(word).split()]  # "forty-two" is heard as two
    said = [part for word in words for part in spoken(word).split()]
    found: dict[int, Word] = {}
    num_said = num_near = 0
    for one, other in align_words(said, [word.text for word in near], ""):
        if one and one == other:
            word, owner = near[num_near], owners[num_said]
            found[owner] = Word("", found.get(owner, word).start_s, word.end_s)
        num_said, num_near = num_said + bool(one), num_near + bool(other)
    known = sorted(found)
    last_s = max([end_s, *(found[i].end_s - LATE_S for i in known)])
    starts_s = np.interp(
        range(len(words)), [-1, *known, len(words)], [start_s, *(found[i].start_s - LATE_S for i in known), last_s]
    )
    ends_s = [found[i].end_s - LATE_S if i in found else starts_s[i] for i in range(len(words))]
    return [
        (word, round(float(begun_s), 3), round(max(0.0, float(ended_s - begun_s)), 3), float(i in found))
        for i, (word, begun_s, ended_s) in enumerate(zip(words, starts_s, ends_s, strict=True))
    ]


def _write(manifest: Path, cuts: Sequence[Mapping[str, Any]]) -> None:
    from s2s_parallel.atomic_file import write_atomically

    lines = "".join(f"{json.dumps(cut, ensure_ascii=False)}\n" for cut in cuts)
    write_atomically(manifest, lambda file: file.write(gzip.compress(lines.encode())))


if __name__ == "__main__":
    sys.exit(main())
