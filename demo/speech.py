"""Speech of the agent's voice, to train the demo's codec on.

    hatch run demo:speech SPEECH_DIR
    hatch run demo:speech SPEECH_DIR --of talk

`speech-*.flac` (16 kHz): sentences of Python's own documentation, which every interpreter carries (`pydoc_data`),
between answers. `answers.flac` (22,050 Hz): every answer of the demo once, or 1,500 of the corpus of tens of hours
(docs/talk-corpus.md), on the frame grid as in the corpus.
"""

import argparse
import os
import random
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from itertools import count as count_up
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import soundfile

from s2s_data.demo import AGENT_VOICE
from s2s_data.demo.corpus import agent_speech, first_words, samples_per_frame
from s2s_data.demo.dialogues import all_exchanges
from s2s_data.demo.voices import ENGINE_RATE_HZ
from s2s_data.talk import dialogue, split_cases
from s2s_data.talk.numbers import in_parts

SENTENCE = re.compile(r"[A-Z][a-z]+(?:,? [a-z]+){4,14}\.")  # plain words only: no code, no digits


def sentences() -> list[str]:
    """Plain English sentences of the Python documentation, in a fixed order, each once."""
    text = re.sub(r"\s+", " ", " ".join(topics[key] for key in sorted(topics)))
    return sorted(set(SENTENCE.findall(text)))


def answers() -> list[tuple[str, ...]]:
    """Everything that the agent may say in the demo, cut-off answers included, each a phrase."""
    full = {exchange.answer for exchange in all_exchanges()}
    return [(text,) for text in sorted(full | {first_words(answer) for answer in full})]


def talk_answers(count: int = 1500) -> list[tuple[str, ...]]:
    """So many of what the agent says in training, in phrases, each answer once."""
    training, _, _ = split_cases(seed=0)
    talks = (dialogue("train", i, training, ["any"], seed=0, pause_share=0.0, barge_in_share=0.0) for i in count_up())
    told = (tuple(chain(*map(in_parts, exchange.phrases))) for talk in talks for exchange in talk.exchanges)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        found[next(told)] = None
    return list(found)


def write_answers(path: Path, said: list[tuple[str, ...]], rate_hz: int = 22050, gap_frames: int = 4) -> None:
    """Write answers, each followed by `gap_frames` of silence, so that all of them start on a frame."""
    gap = np.zeros(gap_frames * samples_per_frame(rate_hz), dtype=np.float32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        spoken = pool.map(lambda phrases: agent_speech(phrases, rate_hz), said)
        soundfile.write(path, np.concatenate([part for parts in spoken for part in (*parts, gap)]), rate_hz)


def main() -> None:
    """Write the answers, and FLAC files of about a minute each, utterances separated by random silence."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--of", choices=["demo", "talk"], default="demo", help="whose answers")
    args = parser.parse_args()
    args.out_dir.mkdir(parents=True, exist_ok=True)
    said = answers() if args.of == "demo" else talk_answers()
    write_answers(args.out_dir / "answers.flac", said)
    rng = random.Random(0)
    texts = [" ".join(phrases) for phrases in said] * 2 + sentences()
    rng.shuffle(texts)
    chunk: list[np.ndarray] = []
    seconds = total_s = 0.0
    index = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for audio in pool.map(AGENT_VOICE.say, texts):
            silence = np.zeros(int(rng.uniform(0.1, 0.6) * ENGINE_RATE_HZ), dtype=np.float32)
            chunk += [audio * (0.5 / np.abs(audio).max()), silence]
            seconds += (len(audio) + len(silence)) / ENGINE_RATE_HZ
            if seconds > 60:
                soundfile.write(args.out_dir / f"speech-{index:03d}.flac", np.concatenate(chunk), ENGINE_RATE_HZ)
                total_s, index, chunk, seconds = total_s + seconds, index + 1, [], 0.0
            if total_s > args.minutes * 60:
                break
    print(f"{index} files, {total_s / 60:.1f} minutes")


if __name__ == "__main__":
    main()
