"""From recordings to a Shar: `s2s-data import-stereo` and `import-manifest`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from lhotse import CutSet, MonoCut

from s2s_data import DataError
from s2s_data.cli import main
from s2s_data.importing import ImportOptions, Spacing, import_manifest, import_stereo, shards
from tests.s2s_data.builders import WordTokenizer

RATE_HZ = 24000

# left is the agent, as in moshi-finetune
WORDS = [
    ["What", [0.10, 0.30], "SPEAKER_OTHER"],
    ["is two?", [0.32, 0.80], "SPEAKER_OTHER"],
    [" It", [1.00, 1.20], "SPEAKER_MAIN"],
    ["is", [1.25, 1.30], "SPEAKER_MAIN"],
    ["Four.", [2.20, 2.60], "SPEAKER_MAIN"],
]


def tone(duration_s: float, hertz: float, rate_hz: int = RATE_HZ) -> npt.NDArray[np.float32]:
    times = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def write_stereo(folder: Path, name: str, transcript: Any = None, duration_s: float = 3.0) -> Path:
    """The agent hums at 500 Hz on the left, the user at 200 Hz on the right."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.wav"
    soundfile.write(path, np.stack([tone(duration_s, 500), tone(duration_s, 200)], axis=1), RATE_HZ)
    path.with_suffix(".json").write_text(json.dumps({"alignments": WORDS} if transcript is None else transcript))
    return path


def read(shar: Path) -> list[MonoCut]:
    return list(CutSet.from_shar(in_dir=str(shar)))


def pitch(samples: npt.NDArray[np.float32], rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples.reshape(-1)))
    return float(np.argmax(spectrum) * rate_hz / samples.size)


def turns_of(cut: MonoCut) -> list[tuple[str, float, float, str]]:
    return [(turn.speaker, turn.start, round(turn.end, 6), turn.text) for turn in cut.supervisions]


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_moshi_layout_becomes_dialogues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stereo(tmp_path / "data" / "stereo", "a")
    write_stereo(tmp_path / "data" / "stereo", "b", duration_s=4.0)
    rows = [{"path": "stereo/b.wav", "duration": 4.0}, {"path": "stereo/a.wav", "duration": 3.0}]
    jsonl = write_rows(tmp_path / "data" / "mine.jsonl", *rows)
    assert main(["import-stereo", str(jsonl), str(tmp_path / "shar")]) == 0
    assert "2 dialogues, 0.00 h, 2 turns of the user and 4 of the agent, 1 shard\n" in capsys.readouterr().out
    longer, cut = read(tmp_path / "shar")
    assert (longer.id, cut.id, longer.duration, cut.duration) == ("stereo__b", "stereo__a", 4.0, 3.0)
    assert turns_of(cut) == [
        ("user", 0.1, 0.8, "What is two?"),
        ("agent", 1.0, 1.3, "It is"),
        ("agent", 2.2, 2.6, "Four."),  # 0.9 s later: a turn of its own
    ]
    items = [item for turn in cut.supervisions for item in turn.alignment["word"]]
    times = [[item.symbol, [item.start, round(item.end, 6)]] for item in items]
    assert times == [[str(word).strip(), at] for word, at, _ in WORDS]
    assert cut.recording.sampling_rate == 16000
    assert cut.target_audio.sampling_rate == 22050
    assert pitch(cut.load_audio(), 16000) == pytest.approx(200, abs=1)
    assert pitch(cut.load_target_audio(), 22050) == pytest.approx(500, abs=1)
    assert cut.load_audio().shape == (1, 48000)
    assert cut.load_target_audio().shape == (1, 66150)
    assert not list(tmp_path.rglob("*unfinished*"))


def test_options_change_what_is_written(tmp_path: Path) -> None:
    transcript = {"turns": [{"speaker": "caller", "start": 0.2, "end": 1.0, "text": "hi"}]}
    transcript["turns"].append({"speaker": "bot", "start": 1.2, "duration": 0.5, "text": " ho  ho"})
    write_stereo(tmp_path / "in", "a", transcript)
    args = "--agent-channel right --agent-speakers bot --user-speakers caller --agent-role sam --user-role me"
    rates = "--source-sample-rate 8000 --target-sample-rate 24000 --format mp3"
    assert main(["import-stereo", str(tmp_path / "in"), str(tmp_path / "out"), *args.split(), *rates.split()]) == 0
    (cut,) = read(tmp_path / "out")
    assert turns_of(cut) == [("me", 0.2, 1.0, "hi"), ("sam", 1.2, 1.7, "ho ho")]
    assert (cut.recording.sampling_rate, cut.target_audio.sampling_rate) == (8000, 24000)
    assert pitch(cut.load_audio(), 8000) == pytest.approx(500, abs=1)
    assert pitch(cut.load_target_audio(), 24000) == pytest.approx(200, abs=1)


def test_words_further_apart_than_the_gap_are_two_turns(tmp_path: Path) -> None:
    write_stereo(tmp_path / "in", "a")
    import_stereo(tmp_path / "in", tmp_path / "out", ImportOptions(max_gap_s=0.9))
    (cut,) = read(tmp_path / "out")
    assert turns_of(cut)[1:] == [("agent", 1.0, 2.6, "It is Four.")]


@pytest.mark.parametrize("interrupted", ["SPEAKER_MAIN", "SPEAKER_OTHER"])
def test_pause_in_which_the_other_side_starts_ends_a_turn(tmp_path: Path, interrupted: str) -> None:
    other = {"SPEAKER_MAIN": "SPEAKER_OTHER", "SPEAKER_OTHER": "SPEAKER_MAIN"}[interrupted]
    words = [
        ["What time is it?", [0.4, 3.2], interrupted],
        ["It will", [3.52, 4.08], other],
        ["And", [3.84, 4.0], interrupted],
        ["six?", [4.04, 5.36], interrupted],
        ["mm", [4.02, 4.2], other],  # no pause: words follow each other within a frame
    ]
    write_stereo(tmp_path / "in", "a", {"alignments": [words[0], *words[2:4], words[1]]}, duration_s=6.0)
    write_stereo(tmp_path / "in", "b", {"alignments": [*words[2:4], words[4]]}, duration_s=6.0)
    import_stereo(tmp_path / "in", tmp_path / "out")
    asks, answers = ("agent", "user") if interrupted == "SPEAKER_MAIN" else ("user", "agent")
    paused, hummed = read(tmp_path / "out")
    assert turns_of(paused) == [
        (asks, 0.4, 3.2, "What time is it?"),
        (answers, 3.52, 4.08, "It will"),
        (asks, 3.84, 5.36, "And six?"),
    ]
    assert turns_of(hummed) == [(asks, 3.84, 5.36, "And six?"), (answers, 4.02, 4.2, "mm")]


def test_loud_parts_are_turns_where_only_the_agent_is_transcribed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_stereo(tmp_path / "in", "a", {"alignments": WORDS[2:]})
    audio, _ = soundfile.read(path, dtype="float32")
    audio[: round(0.4 * RATE_HZ), 1] = 0
    audio[round(1.6 * RATE_HZ) :, 1] = 0
    soundfile.write(path, audio, RATE_HZ)
    assert main(["import-stereo", str(tmp_path / "in"), str(tmp_path / "plain")]) == 0
    assert "1 of them have no turn of the user: transcribe the user's channel too" in capsys.readouterr().out
    assert main(["import-stereo", str(tmp_path / "in"), str(tmp_path / "found"), "--find-user-turns"]) == 0
    assert turns_of(read(tmp_path / "found")[0])[0] == ("user", 0.4, 1.6, "")
    audio[round(0.96 * RATE_HZ) : round(1.2 * RATE_HZ), 1] = 0  # the agent starts at 1.0 s
    soundfile.write(path, audio, RATE_HZ)
    import_stereo(tmp_path / "in", tmp_path / "split", ImportOptions(find_user_turns=True))
    users = [turn for turn in turns_of(read(tmp_path / "split")[0]) if turn[0] == "user"]
    assert users == [("user", 0.4, 0.96, ""), ("user", 1.2, 1.6, "")]


def broken(folder: Path) -> dict[str, str]:
    """Write one of each fault; return what is said about the file that has it."""
    write_stereo(folder, "fine")
    soundfile.write(folder / "mono.wav", tone(1, 200), RATE_HZ)
    soundfile.write(folder / "double.wav", np.stack([tone(1, 200)] * 2, axis=1), RATE_HZ)
    soundfile.write(folder / "surround.wav", np.stack([tone(1, 200)] * 3, axis=1), RATE_HZ)
    write_stereo(folder, "untold").with_suffix(".json").unlink()
    (folder / "noise.wav").write_bytes(b"no audio at all")
    write_stereo(folder, "cutoff").with_suffix(".json").write_text('{"alignments": [')
    write_stereo(folder, "srt", {"segments": []})
    write_stereo(folder, "stranger", {"alignments": [["hi", [0, 1], "SPEAKER_07"]]})
    write_stereo(folder, "overlap", {"alignments": [["one", [0, 1.0], "agent"], ["two", [0.5, 1.5], "agent"]]})
    write_stereo(folder, "late", {"alignments": [["one", [2.9, 3.5], "agent"]]})
    write_stereo(folder, "backward", {"alignments": [["one", [2.0, 1.5], "agent"]]})
    write_stereo(folder, "timeless", {"turns": [{"speaker": "agent", "start": None, "end": 2, "text": "x"}]})
    write_stereo(folder, "endless", {"turns": [{"speaker": "agent", "start": 1, "text": "x"}]})
    turn = {"speaker": "agent", "start": 0, "end": 2, "text": "x"}
    write_stereo(folder, "twice", {"turns": [turn, {**turn, "start": 1}]})
    return {
        "mono.wav": "has one channel, but each side needs its own",
        "double.wav": "both channels are the same, so it is a mono recording",
        "surround.wav": "has 3 channels, but must have two",
        "untold.wav": "has no transcript untold.json beside it",
        "noise.wav": "can't be read",
        "cutoff.json": "isn't JSON",
        "srt.json": "must have 'alignments' or 'turns', but has segments",
        "stranger.json": "the speaker 'SPEAKER_07', who is neither of the agent's",
        "overlap.json": "the agent's words 'one' at 0.00-1.00 s and 'two' at 0.50 s overlap",
        "late.json": "the agent's turn at 2.90-3.50 s lies outside the audio's 3.00 s",
        "backward.json": "word 0, 'one', ends at 1.50 s before its start",
        "timeless.json": "turn 0: start must be a number of seconds, but is None",
        "endless.json": "turn 0 has neither 'end' nor 'duration'",
        "twice.json": "the agent's turn at 0.00-2.00 s overlaps the next one of the same side, at 1.00 s",
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_are_named_once_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    said = broken(tmp_path / "in")
    args = ["import-stereo", str(tmp_path / "in"), str(tmp_path / "out"), "--shard-size", "4"]
    assert main([*args, "--on-error", "skip", "--workers", str(workers)]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    for name, what in said.items():
        (line,) = [line for line in lines if f"{tmp_path / 'in' / name}: " in line]
        assert what in line
    assert len(lines) == len(said)
    assert "1 dialogue," in captured.out
    assert "skipped 14 of 15: " in captured.out
    assert "2 mono audio" in captured.out
    assert [cut.id for cut in read(tmp_path / "out")] == ["fine"]


def test_only_the_first_of_many_bad_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcde":
        write_stereo(tmp_path / "in", name).with_suffix(".json").unlink()
    write_stereo(tmp_path / "in", "z")
    assert main(["import-stereo", str(tmp_path / "in"), str(tmp_path / "out"), "--on-error", "skip"]) == 0
    *named, rest = capsys.readouterr().err.splitlines()
    assert [f"{name}.wav" in line for name, line in zip("abc", named, strict=True)] == [True] * 3
    assert rest == f"and 2 more: no transcript; all in {tmp_path / 'out'}.import/*.json"


def test_messages_have_the_path_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stereo(tmp_path / "in", "a").with_suffix(".json").unlink()
    write_rows(tmp_path / "m.jsonl", {"path": "in/a.wav"})
    monkeypatch.chdir(tmp_path)
    for source in ("in", "m.jsonl"):
        with pytest.raises(DataError, match=r"^in/a.wav: has no transcript"):
            import_stereo(source, f"out-{source}")
    with pytest.raises(DataError, match=r"^in/../in/a.wav: has no transcript"):
        import_stereo("in/../in", "out-dots")


def test_mended_files_are_imported_by_the_same_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcdef":
        write_stereo(tmp_path / "in", name)
    transcripts = {name: (tmp_path / "in" / f"{name}.json").read_text() for name in "bcd"}
    for name in "bcd":
        (tmp_path / "in" / f"{name}.json").unlink()
    out = tmp_path / "out"
    args = ["import-stereo", str(tmp_path / "in"), str(out), "--shard-size", "2", "--on-error", "skip"]
    assert main(args) == 0
    assert "once they are mended, the same command imports them too" in capsys.readouterr().out
    (tmp_path / "in" / "b.json").write_text(transcripts["b"])
    untouched = {path: path.stat().st_mtime_ns for number in (1, 2) for path in out.glob(f"*.00000{number}.*")}
    assert main(args) == 0
    assert "2 of them from an earlier run\nskipped 2 of 6: 2 no transcript" in capsys.readouterr().out
    assert [cut.id for cut in read(out)] == ["a", "b", "e", "f"]
    assert {path: path.stat().st_mtime_ns for path in untouched} == untouched
    assert main([*args[:-2], "--on-error", "stop"]) == 2
    assert "c.wav: has no transcript" in capsys.readouterr().err
    for name in "cd":
        (tmp_path / "in" / f"{name}.json").write_text(transcripts[name])
    assert main(args) == 0
    assert "skipped" not in capsys.readouterr().out
    assert [cut.id for cut in read(out)] == list("abcdef")


def test_a_bad_file_stops_the_import_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stereo(tmp_path / "in", "a")
    soundfile.write(tmp_path / "in" / "b.wav", tone(1, 200), RATE_HZ)
    for workers in ("0", "1"):
        out = tmp_path / f"out{workers}"
        args = ["import-stereo", str(tmp_path / "in"), str(out), "--shard-size", "1", "--workers", workers]
        assert main(args) == 2
        error = capsys.readouterr().err
        assert error.startswith("s2s-data: ")
        assert "b.wav: has one channel" in error
        assert error.count("\n") == 1
        assert [cut.id for cut in read(out)] == ["a"], "the finished shard was lost"


def test_stopped_import_goes_on_with_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcde":
        write_stereo(tmp_path / "in", name)
    options = ImportOptions(shard_size=2)

    def stopped(*args: Any) -> MonoCut:
        if args[0] == "d":
            raise KeyboardInterrupt
        return make_cut(*args)

    make_cut = shards._cut
    monkeypatch.setattr(shards, "_cut", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_stereo(tmp_path / "in", tmp_path / "out", options)
    assert [cut.id for cut in read(tmp_path / "out")] == ["a", "b"], "half a shard is seen"
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.000000.*")}
    monkeypatch.setattr(shards, "_cut", make_cut)
    finished: list[int] = []
    summary = import_stereo(tmp_path / "in", tmp_path / "out", options, progress=finished.append)
    assert [cut.id for cut in read(tmp_path / "out")] == list("abcde")
    assert (summary.num_dialogues, summary.num_shards_kept, sum(finished)) == (5, 1, 5)
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert "1 of them from an earlier run" in summary.lines()[0]


def test_another_import_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    write_stereo(tmp_path / "in", "a")
    import_stereo(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="holds an import with other values of max_gap_s"):
        import_stereo(tmp_path / "in", tmp_path / "out", ImportOptions(max_gap_s=0.1))
    write_stereo(tmp_path / "in", "b")
    with pytest.raises(DataError, match="holds an import with other values of items"):
        import_stereo(tmp_path / "in", tmp_path / "out")
    with pytest.raises(DataError, match="in isn't empty, and holds no import to go on with"):
        import_stereo(tmp_path / "in", tmp_path / "in")


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no audio"):
        import_stereo(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="none: no such file or folder"):
        import_stereo(tmp_path / "none", tmp_path / "out")
    (tmp_path / "x.jsonl").write_text('{"path": "a.wav"}\n\n{"pa')
    with pytest.raises(DataError, match=r"x.jsonl:3: isn't JSON"):
        import_stereo(tmp_path / "x.jsonl", tmp_path / "out")
    write_rows(tmp_path / "y.jsonl", {"audio": "a.wav"})
    with pytest.raises(DataError, match=r"y.jsonl:1: has no 'path' of an audio file; it has audio"):
        import_stereo(tmp_path / "y.jsonl", tmp_path / "out")
    write_stereo(tmp_path / "z", "a")
    rows = write_rows(tmp_path / "z.jsonl", {"path": "z/a.wav", "duration": 30.0})
    with pytest.raises(DataError, match=r"lasts 3.00 s, but its line says 30.00 s"):
        import_stereo(rows, tmp_path / "out")
    write_rows(tmp_path / "twins.jsonl", {"path": "z/a.wav"}, {"path": "z/a.flac"})
    with pytest.raises(DataError, match="would both be the dialogue 'z__a'"):
        import_stereo(tmp_path / "twins.jsonl", tmp_path / "out2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"audio_format": "opus"}, "audio_format: unknown 'opus'"),
        ({"audio_format": "mp3", "target_rate_hz": 22000}, "target_rate_hz is 22000, but MP3 has only"),
        ({"shard_size": 0}, "shard_size is 0, but must be at least 1"),
        ({"user_role": "x", "agent_role": "x"}, r"\['x'\] is in"),
        ({"user_speakers": ("agent",)}, r"\['agent'\] is in user_speakers and in agent_speakers"),
    ],
)
def test_options_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImportOptions(**values)


def write_sides(folder: Path, user_s: float = 2.0, agent_s: float = 2.0) -> None:
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "u.wav", tone(user_s, 200, 16000), 16000)
    soundfile.write(folder / "a.wav", tone(agent_s, 500, 24000), 24000)


TURNS = [
    {"speaker": "user", "start": 0.2, "duration": 0.6, "text": "what is two"},
    {"speaker": "assistant", "start": 1.0, "end": 1.8, "text": "it is four"},
]


def test_manifest_of_dialogues(tmp_path: Path) -> None:
    write_sides(tmp_path / "wavs")
    write_stereo(tmp_path, "both")
    manifest = write_rows(
        tmp_path / "m.jsonl",
        {"id": "one", "user_audio": "wavs/u.wav", "agent_audio": str(tmp_path / "wavs" / "a.wav"), "turns": TURNS},
        {"audio_filepath": "both.wav", "turns": TURNS},
    )
    assert main(["import-manifest", str(manifest), str(tmp_path / "out")]) == 0
    one, both = read(tmp_path / "out")
    assert (one.id, both.id) == ("one", "m-000001")
    for cut in (one, both):
        assert turns_of(cut) == [("user", 0.2, 0.8, "what is two"), ("agent", 1.0, 1.8, "it is four")]
        assert pitch(cut.load_audio(), 16000) == pytest.approx(200, abs=1)
        assert pitch(cut.load_target_audio(), 22050) == pytest.approx(500, abs=1)


def test_manifest_with_other_names(tmp_path: Path) -> None:
    """The form that NeMo's documentation shows, nested and with the speaker `assistant`."""
    write_sides(tmp_path)
    row = {"recording": {"path": "u.wav"}, "custom": {"target_audio": {"path": "a.wav"}}, "supervisions": TURNS}
    manifest = write_rows(tmp_path / "m.jsonl", row)
    fields = ["user_audio=recording.path", "agent_audio=custom.target_audio.path", "turns=supervisions"]
    assert main(["import-manifest", str(manifest), str(tmp_path / "out"), "--field", *fields]) == 0
    assert len(turns_of(read(tmp_path / "out")[0])) == 2


def test_question_and_answer_are_laid_one_after_the_other(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "q.wav", np.concatenate([0 * tone(1, 200), tone(1.5, 200)]), RATE_HZ)
    soundfile.write(tmp_path / "a.wav", tone(1.1, 500), RATE_HZ)
    manifest = write_rows(
        tmp_path / "qa.jsonl",
        {
            "audio_filepath": "q.wav",
            "offset": 1.0,
            "duration": 1.3,
            "text": "what is two",
            "answer": "it is four",
            "target_audio_filepath": "a.wav",
        },
    )
    import_manifest(manifest, tmp_path / "out", spacing=Spacing(lead_in_s=0.4, answer_gap_s=0.3, tail_s=0.2))
    (cut,) = read(tmp_path / "out")
    # 0.4 + 1.3 + 0.3 s is on a frame (25 x 0.08 s); 2.0 + 1.1 + 0.2 s isn't, 42 frames are 3.36 s
    assert turns_of(cut) == [("user", 0.4, 1.7, "what is two"), ("agent", 2.0, 3.1, "it is four")]
    assert cut.duration == pytest.approx(3.36)
    user_S, agent_S = cut.load_audio()[0], cut.load_target_audio()[0]
    loud_s = [np.flatnonzero(np.abs(x) > 0.05)[[0, -1]] / r for x, r in ((user_S, 16000), (agent_S, 22050))]
    assert loud_s[0].tolist() == pytest.approx([0.4, 1.7], abs=0.005)
    assert loud_s[1].tolist() == pytest.approx([2.0, 3.1], abs=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_audio": "none.wav"}, "none.wav: no such file"),
        ({"agent_audio": None}, "m.jsonl:1: agent_audio must be a string, but is missing"),
        ({"turns": "x"}, "m.jsonl:1: turns must be a list"),
        ({"agent_audio": "short.wav"}, "the user's audio lasts 2.00 s, the agent's 1.00 s"),
        ({"agent_audio": "both.wav"}, "both.wav: has 2 channels, but holds one side"),
        ({"turns": None, "audio_filepath": "u.wav", "text": "x"}, "target_audio_filepath must be a string, but is mis"),
        ({"turns": None, "audio_filepath": "u.wav", "offset": 3}, "has no audio at 3.00 s"),
        (
            {"turns": None, "audio_filepath": "u.wav", "duration": "1"},
            "duration must be a number of seconds, but is '1'",
        ),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_sides(tmp_path)
    write_stereo(tmp_path, "both")
    soundfile.write(tmp_path / "short.wav", tone(1, 500), RATE_HZ)
    row = {"user_audio": "u.wav", "agent_audio": "a.wav", "turns": TURNS, **change}
    with pytest.raises(DataError, match=message):
        import_manifest(write_rows(tmp_path / "m.jsonl", row), tmp_path / "out")


def test_shorter_file_is_padded_if_asked(tmp_path: Path) -> None:
    write_sides(tmp_path, user_s=2.0, agent_s=3.0)
    manifest = write_rows(tmp_path / "m.jsonl", {"user_audio": "u.wav", "agent_audio": "a.wav", "turns": TURNS})
    assert main(["import-manifest", str(manifest), str(tmp_path / "out"), "--pad-channels"]) == 0
    (cut,) = read(tmp_path / "out")
    assert cut.duration == 3.0
    assert not cut.load_audio()[0, 33000:].any()


def test_unknown_field_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_rows(tmp_path / "m.jsonl", {"id": "x"})
    assert main(["import-manifest", str(manifest), str(tmp_path / "out"), "--field", "user_adio=x"]) == 2
    assert "unknown 'user_adio': did you mean 'user_audio'?" in capsys.readouterr().err
    assert main(["import-manifest", str(manifest), str(tmp_path / "out"), "--field", "user_audio"]) == 2
    assert "must be NAME=KEY" in capsys.readouterr().err
    assert main(["import-manifest", str(manifest), str(tmp_path / "out"), "--field", "turns=supervisionz"]) == 2
    assert "no row has 'supervisionz' (--field turns=supervisionz); the first has id" in capsys.readouterr().err
    assert main(["import-manifest", str(tmp_path), str(tmp_path / "out")]) == 2
    assert f"{tmp_path}: is a folder: name the jsonl manifest in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        ({"speaker": "user", "end": 1.0, "text": "x"}, "incomplete turn"),
        ({"speaker": "user", "start": "0", "end": 1.0, "text": "x"}, "time that is no number"),
        ("x", "unknown layout"),
    ],
)
def test_summary_names_what_is_wrong_with_a_turn(tmp_path: Path, turn: Any, kind: str) -> None:
    write_sides(tmp_path)
    row = {"user_audio": "u.wav", "agent_audio": "a.wav", "turns": [turn]}
    summary = import_manifest(write_rows(tmp_path / "m.jsonl", row), tmp_path / "out", ImportOptions(on_error="skip"))
    assert [skipped.kind for skipped in summary.skipped] == [kind]


def test_imported_shar_is_checked_clean_and_trains(tmp_path: Path) -> None:
    from s2s_data import train_dataloader
    from tests.s2s_data.builders import config

    for name in "abcd":
        write_stereo(tmp_path / "in", name)
    import_stereo(tmp_path / "in", tmp_path / "out")
    batch = next(iter(train_dataloader(config({"shar_path": str(tmp_path / "out")}), WordTokenizer())))
    assert batch["target_texts"] == ["It is Four."] * 2
    assert batch["source_texts"] == ["What is two?"] * 2
