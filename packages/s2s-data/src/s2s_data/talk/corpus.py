"""From planned dialogues to Shars of tens of hours, shard by shard in several processes."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from lhotse import MonoCut
from lhotse.serialization import load_jsonl
from lhotse.shar import SharWriter

from s2s_data.demo.corpus import (
    FRAME_S,
    Turn,
    agent_speech,
    cut_of,
    samples_per_frame,
    whole_frames,
)
from s2s_data.demo.voices import AGENT_VOICE, ENGINE_RATE_HZ, FloatArray, Voice
from s2s_data.errors import DataError
from s2s_data.talk.numbers import aloud, in_parts
from s2s_data.talk.plan import Held, Talk, dialogue, split_cases
from s2s_data.talk.rooms import write_surroundings
from s2s_data.talk.text import SILENT_FRAMES, TextTurn, most_tokens, text_cut, text_turns
from s2s_data.talk.voices import HELDOUT_VOICES, USER_VOICES
from s2s_data.whole_shard import whole_shard

FIRST_HEARD = 2  # frames of an answer before the user cuts in, at least
FRAME_SAMPLES = round(FRAME_S * ENGINE_RATE_HZ)
DIALOGUE_S = 17.1  # what a training dialogue lasts on average: 400 took 1.90 hours
UNFINISHED = "unfinished.json"  # the settings of a corpus that isn't whole yet
TEXT = "text"  # the training dialogues of text alone, and their folder
FOLDERS = ("corpus", "noise", "rooms", TEXT)
FIELDS = {"recording": "flac", "target_audio": "flac"}  # what is encoded later has to be what was spoken


@dataclass(frozen=True)
class TalkConfig:
    """How large the corpus is and how its dialogues flow (all spacing in 80 ms frames)."""

    hours: float = 30.0  # of training dialogues
    texts_per_dialogue: float = 4.0  # training dialogues of text alone for each that is spoken
    num_heldout: int = 96  # dialogues of each held-out set
    dialogues_per_shard: int = 64
    agent_rate_hz: int = 22050
    answer_gap_frames: int = 5  # enough for a model to have heard the question's last word
    tail_frames: int = 8
    pause_share: float = 0.25  # of questions within which the user stops
    barge_in_share: float = 0.15  # of answers that aren't the last
    agent_voice: Voice = AGENT_VOICE
    user_voices: tuple[Voice, ...] = USER_VOICES
    heldout_voices: tuple[Voice, ...] = HELDOUT_VOICES
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """A set of dialogues: what it may ask, and in which voices."""

    name: str
    held: Held
    voices: tuple[Voice, ...]


def splits(config: TalkConfig) -> dict[str, Split]:
    """Training and the three held-out sets: cases, wordings and voices that training doesn't have."""
    training, cases, wordings = split_cases(config.seed)
    all_of_them = (
        Split("train", training, config.user_voices),
        Split("heldout", cases, config.user_voices),
        Split("heldout_wording", wordings, config.user_voices),
        Split("heldout_voice", training, config.heldout_voices),
    )
    return {split.name: split for split in all_of_them}


def build_talk_corpus(
    out_dir: Path,
    config: TalkConfig | None = None,
    *,
    num_processes: int = 1,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Build the four splits under `out_dir`/corpus as Shar, and text, noises and rooms beside; returns hours of each.

    What broke off goes on behind the shards that are there.

    Raises:
        FileExistsError: `out_dir` has one of the folders already, whole.
        FileNotFoundError, ImportError: a speech engine is missing; the message says how to get it.
        DataError: a number that must be positive isn't, or `out_dir` was begun with other settings.
    """
    config = config or TalkConfig()
    if config.hours <= 0 or config.num_heldout < 1 or num_processes < 1:
        raise DataError(
            f"hours ({config.hours}), dialogues of a held-out set ({config.num_heldout}) and processes "
            f"({num_processes}) must be positive"
        )
    if config.texts_per_dialogue < 0:
        raise DataError(f"dialogues of text for each spoken one are {config.texts_per_dialogue}: give 0 or more")
    goes_on = _goes_on(out_dir, config)
    for voice in {
        voice.engine: voice for voice in (config.agent_voice, *config.user_voices, *config.heldout_voices)
    }.values():
        voice.say("hello")  # a missing engine is told before anything is written
    if not goes_on:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / UNFINISHED).write_text(_settings(config))
    for name in ("noise", "rooms"):
        shutil.rmtree(out_dir / name, ignore_errors=True)
    write_surroundings(out_dir, seed=config.seed)
    sizes = dict.fromkeys(splits(config), config.num_heldout)
    sizes["train"] = max(1, round(config.hours * 3600 / DIALOGUE_S))
    sizes[TEXT] = round(config.texts_per_dialogue * sizes["train"])
    hours = {}
    with _mapping(num_processes) as mapped:
        for name, size in sizes.items():
            if not size:
                continue
            folder = out_dir / (name if name == TEXT else f"corpus/{name}")
            folder.mkdir(parents=True, exist_ok=True)
            seconds = 0.0
            shards = _shards(size, config.dialogues_per_shard)
            for shard_s in mapped(partial(_write_shard, folder, config, name), shards):
                seconds += shard_s
                progress(f"{folder}: {seconds / 3600:.2f} hours")
            hours[name] = seconds / 3600
    (out_dir / UNFINISHED).unlink()
    return hours


def _goes_on(out_dir: Path, config: TalkConfig) -> bool:
    """Whether a corpus with these settings has been begun there."""
    if (out_dir / UNFINISHED).is_file():
        if (out_dir / UNFINISHED).read_text() != _settings(config):
            raise DataError(
                f"{out_dir} was begun with other settings, which lie in {out_dir / UNFINISHED}: give the same to go on,"
                " or name another folder"
            )
        return True
    for name in FOLDERS:
        if (out_dir / name).exists():
            raise FileExistsError(f"{out_dir / name} is there already: name another folder, or remove it first")
    return False


def _settings(config: TalkConfig) -> str:
    return json.dumps(asdict(config), indent=1)


@contextmanager
def _mapping(num_processes: int) -> Iterator[Callable[..., Iterator[float]]]:
    """`map`, or that of so many processes."""
    if num_processes == 1:
        yield map
        return
    # Not forked: this process may have threads of its own.
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        yield pool.map


def _shards(num_dialogues: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Number, first dialogue and dialogues of each shard."""
    for index, first in enumerate(range(0, num_dialogues, size)):
        yield index, first, min(size, num_dialogues - first)


def _talks(split: Split, config: TalkConfig, first: int) -> Iterator[tuple[Talk, Voice]]:
    voices = {voice.name: voice for voice in split.voices}
    for index in itertools.count(first):
        talk = dialogue(
            split.name, index, split.held, list(voices), seed=config.seed, pause_share=config.pause_share,
            barge_in_share=config.barge_in_share,
        )  # fmt: skip
        yield talk, voices[talk.voice]


def _write_shard(folder: Path, config: TalkConfig, name: str, shard: tuple[int, int, int]) -> float:
    """Write one shard, unless it is there; returns seconds of dialogue."""
    index, first, count = shard
    cuts = f"cuts.{index:06d}.jsonl.gz"
    part = folder / f".part-{index:06d}"
    shutil.rmtree(part, ignore_errors=True)
    if not (folder / cuts).is_file():
        with whole_shard(part, folder):
            wavs = part / "wavs"
            wavs.mkdir()
            with SharWriter(str(part), FIELDS, shard_size=count, shard_offset=index) as writer:
                for cut in itertools.islice(_cuts(config, name, first, wavs), count):
                    writer.write(cut)
                    for path in wavs.iterdir():
                        path.unlink()
            wavs.rmdir()
    return float(sum(cut["duration"] for cut in load_jsonl(folder / cuts)))


def _cuts(config: TalkConfig, name: str, first: int, folder: Path) -> Iterator[MonoCut]:
    """The dialogues of a set, spoken, their audio files in `folder`; or written, where they are text alone."""
    if name != TEXT:
        for talk, voice in _talks(splits(config)[name], config, first):
            yield render(talk, config, voice, folder)
        return
    training, _, _ = split_cases(config.seed)
    for index in itertools.count(first):
        talk = text_talk(TEXT, index, training, config)
        turns = text_turns_of(talk, config, most_tokens)
        num_frames = max(turn.end for turn in turns) + config.tail_frames
        yield text_cut(talk.dialogue_id, turns, num_frames, ENGINE_RATE_HZ, config.agent_rate_hz)


def text_talk(name: str, index: int, held: Held, config: TalkConfig) -> Talk:
    """What dialogue `index` of a set says where it is text alone: nobody stops within a question, or cuts in."""
    return dialogue(name, index, held, ["nobody"], seed=config.seed, pause_share=0.0, barge_in_share=0.0)


def text_turns_of(talk: Talk, config: TalkConfig, num_tokens: Callable[[str], int]) -> list[TextTurn]:
    """Its turns at a pace of its own; see `s2s_data.talk.text.text_turns`."""
    rng = random.Random(f"{config.seed}-{talk.dialogue_id}-pace")
    return text_turns(talk, rng, num_tokens, answer_gap=config.answer_gap_frames)


def render(talk: Talk, config: TalkConfig, voice: Voice, folder: Path) -> MonoCut:
    """Speak a dialogue: see `s2s_data.demo.corpus.cut_of`."""
    turns, num_frames = lay_out(talk, config, voice)
    return cut_of(
        talk.dialogue_id, turns, num_frames, agent_rate_hz=config.agent_rate_hz, voice=voice.name, folder=folder
    )  # fmt: skip


def lay_out(talk: Talk, config: TalkConfig, voice: Voice) -> tuple[list[Turn], int]:
    """Place the turns of a dialogue on the frame grid; returns the turns and the total number of frames."""
    turns: list[Turn] = []
    clock = 0
    for i, exchange in enumerate(talk.exchanges):
        begins = clock if i - 1 in talk.barge_ins else clock + talk.gaps[i]
        said, words = _said(talk, i, voice)
        question = Turn("user", exchange.question, begins, said, ENGINE_RATE_HZ, words=words)
        cut_off = i in talk.barge_ins
        heard = exchange.heard_if_cut_off if cut_off else exchange.phrases
        answer = _answer(heard, question.end + config.answer_gap_frames, config, None if cut_off else exchange.value)
        turns += [question, answer]
        # The user starts while the agent is speaking; the agent finishes the phrase in progress.
        clock = max(answer.end - talk.barge_ins[i], answer.start + FIRST_HEARD) if cut_off else answer.end
    return turns, max(turn.end for turn in turns) + config.tail_frames


def _answer(phrases: Sequence[str], start: int, config: TalkConfig, value: str | None) -> Turn:
    """What the agent says from frame `start` on, phrase by phrase, each on the frame grid.

    A phrase then sounds the same wherever it stands, and a few hundred of them are all that the agent says. The
    beginning of an answer, too, sounds as that of the whole one, and nothing tells that the user is about to interrupt.
    Before the first there are `SILENT_FRAMES`.
    """
    say = partial(agent_speech, rate_hz=config.agent_rate_hz, voice=config.agent_voice)
    silence_S = np.concatenate(say([]) * SILENT_FRAMES)
    sounds = [silence_S, *(np.concatenate(say(in_parts(phrase))[1:]) for phrase in phrases)]
    ends = list(itertools.accumulate(len(sound_S) // samples_per_frame(config.agent_rate_hz) for sound_S in sounds))
    words = tuple(zip(phrases, ends, ends[1:], strict=False))
    return Turn("agent", " ".join(phrases), start, np.concatenate(sounds), config.agent_rate_hz, value, words)


def _said(talk: Talk, index: int, voice: Voice) -> tuple[FloatArray, tuple[tuple[str, int, int], ...]]:
    """The user's question [S], with its pause, and which frames its parts before and behind it take."""
    question, pause = talk.exchanges[index].question, talk.pauses.get(index)
    if pause is None:
        return whole_frames(voice.say(aloud(question)), ENGINE_RATE_HZ), ()
    words = question.split()
    parts = [" ".join(words[: pause.after_words]), " ".join(words[pause.after_words :])]
    begun, ended = (whole_frames(voice.say(aloud(part)), ENGINE_RATE_HZ) for part in parts)
    said_S = np.concatenate([begun, np.zeros(pause.num_frames * FRAME_SAMPLES, dtype=np.float32), ended])
    stops, end = len(begun) // FRAME_SAMPLES, len(said_S) // FRAME_SAMPLES
    return said_S, ((parts[0], 0, stops), (parts[1], stops + pause.num_frames, end))
