"""A corpus with one of every defect that `s2s-data check` knows: `python tests/s2s_data/broken_corpus.py FOLDER`.

Each defect is in a cut named after it. Speech is a tone in the turns; there is silence around them.
"""

import io
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

SOURCE_RATE_HZ = 16000
TARGET_RATE_HZ = 22050
DURATION_S = 4.0
NUM_FRAMES = 50
SHARD_SIZE = 4
GOOD_CODES_TK = np.zeros((NUM_FRAMES, 4), np.int32)
FIELDS = {"recording": "wav", "target_audio": "wav", "target_codes": "numpy"}

TurnSpec = tuple[str, float, float, str]  # speaker, start and duration in seconds, text
ASKED: TurnSpec = ("user", 0.4, 1.2, "What is two and two?")
ANSWERED: TurnSpec = ("agent", 2.0, 0.8, "It is four.")
Spans = Sequence[tuple[float, float]]

# What a cut's turns are, where they are what's wrong with it.
WRONG_TURNS: dict[str, list[TurnSpec]] = {
    "unknown-speaker": [ASKED, ANSWERED, ("dog", 3.2, 0.4, "Wuff!")],
    "no-agent-turn": [ASKED],
    "turn-outside": [ASKED, ("agent", 2.0, 2.4, "It is four.")],
    "turns-overlap": [ASKED, ANSWERED, ("agent", 2.4, 0.8, "Or five.")],
    "empty-text": [ASKED, ("agent", 2.0, 0.8, " <|3|> ")],
    "text-too-long": [ASKED, ("agent", 2.0, 0.8, "It is four, as it was four last time, and will be.")],
}
# What a cut is made with, where that is what's wrong with it.
WRONG_MAKING: dict[str, dict[str, Any]] = {
    "no-target": {"target": None, "codes_TK": None},
    "silent-turn": {"target": []},
    "loud-outside": {"target": [(0.4, 0.8), (2.0, 2.8)]},
    "clipped": {"amplitude": 4.0},
    "rates-differ": {"source_rate_hz": 8000},
    "code-length": {"codes_TK": np.zeros((25, 4), np.int32)},
    "codes-missing": {"codes_TK": None},
    "codebooks-differ": {"codes_TK": np.zeros((NUM_FRAMES, 8), np.int32)},
    "codec-differs": {"fingerprint": "another-codec"},
}


def build(folder: Path) -> Path:
    """Write two Shars, a manifest, and the blend of them, whose path is returned."""
    folder.mkdir(parents=True)
    cuts = [make(kind, turns) for kind, turns in WRONG_TURNS.items()]
    cuts += [make(kind, **making) for kind, making in WRONG_MAKING.items()]
    cuts += [make("duplicate-id") for _ in range(2)]
    cuts += [make(kind) for kind in ("unreadable-audio", "non-finite", "unreadable-codes")]
    cuts += [make(f"good-{number}") for number in range(SHARD_SIZE - len(cuts) % SHARD_SIZE)]
    cuts += [make(f"unloadable-{number}") for number in range(SHARD_SIZE)]
    cuts += [make(f"broken-shard-{number}") for number in range(SHARD_SIZE)]
    chat = write(folder / "chat", cuts)
    _spoil(chat, "recording", "unreadable-audio", b"no audio at all")
    _spoil(chat, "recording", "non-finite", _wav(np.full(64000, np.nan, np.float32), SOURCE_RATE_HZ, "FLOAT"))
    _spoil(chat, "target_codes", "unreadable-codes", b"no array at all")
    *_, unloadable, _ = sorted(chat.glob("recording.*.tar"))
    unloadable.write_bytes(unloadable.read_bytes()[:1000])
    *_, broken = sorted(chat.glob("cuts.*"))
    broken.write_bytes(b"no manifest at all")
    more = write(folder / "more", [make("good-0"), make("good-elsewhere")])
    entries = [f"{{type: lhotse_shar, shar_path: {shar}}}" for shar in (chat, more)]
    files = _write_files(folder / "files")
    entries.append(f"{{type: lhotse, cuts_path: {files}}}")
    blend = folder / "blend.yaml"
    blend.write_text("".join(f"- {entry}\n" for entry in entries))
    return blend


def make(
    cut_id: str,
    turns: Sequence[TurnSpec] = (ASKED, ANSWERED),
    *,
    target: Spans | None = ((2.0, 2.8),),
    target_duration_s: float = DURATION_S,
    amplitude: float = 0.2,
    source_rate_hz: int = SOURCE_RATE_HZ,
    codes_TK: npt.NDArray[np.int32] | None = GOOD_CODES_TK,
    fingerprint: str = "the-codec",
) -> MonoCut:
    """A dialogue in which nothing is wrong but what the arguments make so; ``target`` is when the agent sounds."""
    source = _recording(f"{cut_id}-user", DURATION_S, source_rate_hz, [(0.4, 1.6)], amplitude)
    cut = MonoCut(cut_id, start=0, duration=DURATION_S, channel=0, recording=source)
    cut.supervisions = [
        SupervisionSegment(f"{cut_id}-{number}", source.id, start, duration, text=text, speaker=speaker)
        for number, (speaker, start, duration, text) in enumerate(turns)
    ]
    if target is not None:
        cut.target_audio = _recording(f"{cut_id}-agent", target_duration_s, TARGET_RATE_HZ, target, 0.2)
    if codes_TK is not None:
        cut = cut.attach_tensor("target_codes", codes_TK, frame_shift=0.08, temporal_dim=0)
        cut.codec_fingerprint = fingerprint
    return cut


def write(folder: Path, cuts: Sequence[MonoCut]) -> Path:
    """Write a Shar."""
    folder.mkdir()
    CutSet(list(cuts)).to_shar(folder, fields=FIELDS, shard_size=SHARD_SIZE, warn_unused_fields=False)
    return folder


def _write_files(folder: Path) -> Path:
    """Write a manifest with audio files of its own: to_shar itself refuses or mends what is wrong with these cuts."""
    folder.mkdir()
    shorter = make("durations-differ", target_duration_s=3.5, codes_TK=None)
    shorter.recording = _as_file(shorter.recording, folder)
    shorter.target_audio = _as_file(shorter.target_audio, folder)
    sourceless = make("no-source", target=None, codes_TK=None)
    sourceless.recording = None
    CutSet([shorter, sourceless]).to_file(folder / "cuts.jsonl.gz")
    return folder / "cuts.jsonl.gz"


def _as_file(recording: Recording, folder: Path) -> Recording:
    path = folder / f"{recording.id}.wav"
    path.write_bytes(recording.sources[0].source)
    return Recording.from_file(path)


def _recording(recording_id: str, duration_s: float, rate_hz: int, spans: Spans, amplitude: float) -> Recording:
    times_S = np.arange(round(duration_s * rate_hz)) / rate_hz
    sounds_S = np.zeros(len(times_S), bool)
    for start_s, end_s in spans:
        sounds_S |= (times_S >= start_s) & (times_S < end_s)
    tone_S = np.clip(amplitude * np.sin(2 * np.pi * 220 * times_S) * sounds_S, -1, 1)
    return Recording.from_bytes(_wav(tone_S.astype(np.float32), rate_hz, "PCM_16"), recording_id)


def _wav(audio_S: npt.NDArray[np.float32], rate_hz: int, subtype: str) -> bytes:
    wav = io.BytesIO()
    soundfile.write(wav, audio_S, rate_hz, format="WAV", subtype=subtype)
    return wav.getvalue()


def _spoil(shar: Path, field: str, cut_id: str, data: bytes) -> None:
    """Put ``data`` where a cut's audio or codes are."""
    for path in shar.glob(f"{field}.*.tar"):
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member)) for member in tar]
            files = [(member.name, file.read()) for member, file in members if file is not None]
        with tarfile.open(path, "w") as tar:
            for name, content in files:
                spoilt = data if name.startswith(f"{cut_id}.") and not name.endswith(".json") else content
                info = tarfile.TarInfo(name)
                info.size = len(spoilt)
                tar.addfile(info, io.BytesIO(spoilt))


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
