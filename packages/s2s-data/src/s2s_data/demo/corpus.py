"""From planned dialogues to a two-channel lhotse Shar.

Every turn starts on a frame and lasts whole frames: both channels then have exactly the same duration, and an
answer that is said twice gives the same codec codes twice.
"""

import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter
from lhotse.supervision import AlignmentItem

from s2s_data.codes import AudioCodec
from s2s_data.demo.dialogues import Dialogue, plan_dialogues
from s2s_data.demo.voices import AGENT_VOICE, ENGINE_RATE_HZ, HELDOUT_VOICE, USER_VOICES, FloatArray, Voice
from s2s_data.roles import WORD
from s2s_data.shar import TARGET_CODES
from s2s_data.stored_codes import FINGERPRINT

FRAME_S = 0.08
PEAK = 0.5  # every utterance is scaled to this peak


@dataclass(frozen=True)
class DemoConfig:
    """How large the corpus is and how its turns are spaced (all spacing in 80 ms frames)."""

    num_train: int = 160  # training dialogues
    num_validation: int = 16  # dialogues of each held-out set
    dialogues_per_shard: int = 16
    agent_rate_hz: int = 22050
    lead_in_frames: int = 5  # silence before the first question
    answer_gap_frames: int = 4  # between a question and its answer
    question_gap_frames: int = 6  # between an answer and the next question
    tail_frames: int = 6  # silence after the last answer
    overlap_frames: int = 5  # how long the agent still speaks after the user barges in, at most
    barge_in_share: float = 0.15
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """Who says what, and when."""

    role: str
    text: str
    start: int  # frames
    audio: FloatArray  # [S] at the role's rate, whole frames
    rate_hz: int
    value: str | None = None  # what an answer has to contain
    words: tuple[tuple[str, int, int], ...] = ()  # its words or parts: from and to which frame of the turn

    @property
    def end(self) -> int:
        """The frame behind the turn."""
        return self.start + len(self.audio) // samples_per_frame(self.rate_hz)


def samples_per_frame(rate_hz: int) -> int:
    """Samples in 80 ms; the rates used here divide evenly (1,280 at 16 kHz, 1,764 at 22.05 kHz)."""
    return round(rate_hz * FRAME_S)


def whole_frames(audio_S: FloatArray, rate_hz: int) -> FloatArray:
    """Scale to `PEAK` and pad with silence up to a whole number of frames."""
    size = samples_per_frame(rate_hz)
    padded = np.zeros(math.ceil(len(audio_S) / size) * size, dtype=np.float32)
    padded[: len(audio_S)] = audio_S * (PEAK / np.abs(audio_S).max())
    return padded


def agent_speech(phrases: Sequence[str], rate_hz: int, voice: Voice | None = None) -> list[FloatArray]:
    """A frame of silence, then each phrase as `voice`, by default the agent's, says it: [S] float32 at `rate_hz`.

    All are whole frames; phrases are read-only, and shared between calls. The model has its control code "the agent
    starts" in a turn's first frame, so what sounds there is never learned.
    """
    silence = np.zeros(samples_per_frame(rate_hz), dtype=np.float32)
    return [silence, *(_phrase(phrase, rate_hz, voice or AGENT_VOICE) for phrase in phrases)]


@functools.lru_cache(maxsize=1024)  # a few hundred are all that an agent says
def _phrase(phrase: str, rate_hz: int, voice: Voice) -> FloatArray:
    import soxr

    said = soxr.resample(voice.say(phrase), ENGINE_RATE_HZ, rate_hz)
    audio_S = whole_frames(np.asarray(said, dtype=np.float32), rate_hz)
    audio_S.setflags(write=False)
    return audio_S


def first_words(text: str) -> str:
    """What the agent has said of `text` when it is cut off: whole words, about half of them."""
    words = text.rstrip(".").split()
    return " ".join(words[: max(1, len(words) // 2)])


def cut_off_by(frames: int, turn: Turn) -> int:
    """The frame at which the next turn begins if it cuts off this one's last `frames`, or half of it."""
    return turn.end - min(frames, (turn.end - turn.start) // 2)


def lay_out(dialogue: Dialogue, config: DemoConfig, voice: Voice) -> tuple[list[Turn], int]:
    """Place the turns of a dialogue on the frame grid; returns the turns and the total number of frames."""
    turns: list[Turn] = []
    clock = config.lead_in_frames
    for i, exchange in enumerate(dialogue.exchanges):
        said = whole_frames(voice.say(exchange.question), ENGINE_RATE_HZ)
        question = Turn("user", exchange.question, clock, said, ENGINE_RATE_HZ)
        start = question.end + config.answer_gap_frames
        cut_off = i in dialogue.barge_ins
        text = first_words(exchange.answer) if cut_off else exchange.answer
        speech = np.concatenate(agent_speech([text], config.agent_rate_hz))
        answer = Turn("agent", text, start, speech, config.agent_rate_hz)
        turns += [question, answer]
        # The user starts while the agent is speaking; the agent finishes the word in progress.
        clock = cut_off_by(config.overlap_frames, answer) if cut_off else answer.end + config.question_gap_frames
    return turns, max(turn.end for turn in turns) + config.tail_frames


def _channel(turns: Iterable[Turn], rate_hz: int, num_frames: int) -> FloatArray:
    """The audio [S] of one role's turns in the whole dialogue."""
    size = samples_per_frame(rate_hz)
    audio = np.zeros(num_frames * size, dtype=np.float32)
    for turn in turns:
        audio[turn.start * size : turn.start * size + len(turn.audio)] += turn.audio
    return audio


def _recording(audio_S: FloatArray, rate_hz: int, path: Path) -> Recording:
    soundfile.write(path, audio_S, rate_hz, subtype="PCM_16")
    return Recording.from_file(path, recording_id=path.stem)


def supervision_of(
    name: str,
    recording_id: str,
    *,
    role: str,
    text: str,
    frames: tuple[int, int],
    words: Sequence[tuple[str, int, int]] = (),
    value: str | None = None,
) -> SupervisionSegment:
    """A turn as its cut has it, from and to which frame, with its words or parts as `Turn` has them."""
    start, end = frames
    times = [
        AlignmentItem(word, round((start + first) * FRAME_S, 2), round((behind - first) * FRAME_S, 2))
        for word, first, behind in words
    ]
    return SupervisionSegment(
        id=name,
        recording_id=recording_id,
        start=round(start * FRAME_S, 2),
        duration=round((end - start) * FRAME_S, 2),
        text=text,
        speaker=role,
        language="English",
        custom=None if value is None else {"value": value},
        alignment={WORD: times} if times else None,
    )


def cut_of(
    name: str,
    turns: Sequence[Turn],
    num_frames: int,
    *,
    agent_rate_hz: int,
    voice: str,
    folder: Path,
    codec: AudioCodec | None = None,
) -> MonoCut:
    """A dialogue's cut: the user's audio, the agent's as `target_audio`, and the turns; audio files go to `folder`.

    With a `codec` the cut gets `target_codes` too, made from the audio before the Shar compresses it: MP3's noise
    would give each repetition of an answer codes of its own.
    """
    agent_S = _channel([turn for turn in turns if turn.role == "agent"], agent_rate_hz, num_frames)
    user_S = _channel([turn for turn in turns if turn.role == "user"], ENGINE_RATE_HZ, num_frames)
    user = _recording(user_S, ENGINE_RATE_HZ, folder / f"{name}-user.wav")
    cut = MonoCut(id=name, start=0.0, duration=user.duration, channel=0, recording=user)
    cut.supervisions = [
        supervision_of(
            f"{name}-{i}", user.id, role=turn.role, text=turn.text, frames=(turn.start, turn.end), words=turn.words,
            value=turn.value,
        )
        for i, turn in enumerate(turns)
    ]  # fmt: skip
    cut.target_audio = _recording(agent_S, agent_rate_hz, folder / f"{name}-agent.wav")
    cut.custom["user_voice"] = voice
    if codec is not None:
        codes_1TK, lens = codec.encode(torch.from_numpy(agent_S)[None], torch.tensor([len(agent_S)]))
        codes_TK = codes_1TK[0, : int(lens[0])].int().numpy()
        cut = cut.attach_tensor(TARGET_CODES, codes_TK, frame_shift=FRAME_S, temporal_dim=0)
        cut.custom[FINGERPRINT] = codec.fingerprint
    return cut


def render(
    dialogue: Dialogue, config: DemoConfig, voice: Voice, folder: Path, codec: AudioCodec | None = None
) -> MonoCut:
    """Speak one dialogue; see `cut_of`."""
    turns, num_frames = lay_out(dialogue, config, voice)
    return cut_of(
        dialogue.dialogue_id,
        turns,
        num_frames,
        agent_rate_hz=config.agent_rate_hz,
        voice=voice.name,
        folder=folder,
        codec=codec,
    )


def build_demo_corpus(
    out_dir: Path,
    config: DemoConfig | None = None,
    codec: AudioCodec | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, int]:
    """Build `train`, `heldout` and `heldout_voice` under `out_dir` as Shar; returns the dialogues of each.

    Raises:
        FileExistsError: `out_dir` holds something already.
        FileNotFoundError, ImportError: a speech engine is missing; the message says how to get it.
    """
    config = config or DemoConfig()
    if out_dir.exists() and any(out_dir.iterdir()):
        raise FileExistsError(f"{out_dir} isn't empty: name another folder, or remove it first")
    plan = plan_dialogues(
        [voice.name for voice in USER_VOICES],
        HELDOUT_VOICE.name,
        num_train=config.num_train,
        num_validation=config.num_validation,
        barge_in_share=config.barge_in_share,
        seed=config.seed,
    )
    splits = {"train": plan.train, "heldout": plan.heldout, "heldout_voice": plan.heldout_voice}
    voices = {voice.name: voice for voice in (*USER_VOICES, HELDOUT_VOICE)}
    for split, dialogues in splits.items():
        with tempfile.TemporaryDirectory() as wavs:
            cuts = (render(d, config, voices[d.voice], Path(wavs), codec) for d in dialogues)
            write_shar(cuts, out_dir / split, config.dialogues_per_shard, with_codes=codec is not None)
        progress(f"{out_dir / split}: {len(dialogues)} dialogues")
    return {split: len(dialogues) for split, dialogues in splits.items()}


def write_shar(cuts: Iterable[MonoCut], out_dir: Path, shard_size: int, *, with_codes: bool) -> None:
    """Write both channels as MP3, a fifth of FLAC's size, and the codes as they are."""
    out_dir.mkdir(parents=True)  # SharWriter doesn't make its folder
    fields = {"recording": "mp3", "target_audio": "mp3"} | ({TARGET_CODES: "numpy"} if with_codes else {})
    with SharWriter(str(out_dir), fields=fields, shard_size=shard_size) as writer:
        for cut in cuts:
            writer.write(cut)
