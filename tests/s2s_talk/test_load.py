"""`say` and `load` against a real server."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from s2s_talk.cli import main
from s2s_talk.load_figures import Round, is_held
from s2s_talk.user import Answers
from tests.s2s_talk.builders import FRAME, PATIENT, alone, noise, server

LSB = 4


def test_a_recording_is_answered_as_a_session_alone_answers_it(address, model, tmp_path, capsys):
    said = noise(10)
    soundfile.write(tmp_path / "question.wav", said.ravel(), 16000, subtype="PCM_16")
    paths = [str(tmp_path / "question.wav"), str(tmp_path / "answer.wav")]
    assert main(["say", address, *paths, "--tail", "0.4"]) == 0
    record = json.loads((tmp_path / "answer.json").read_text())
    _, audio, text, user_text = alone(model, np.concatenate([said, np.zeros((5, FRAME), "<i2")]), record["frames"])
    assert (record["text"], record["user_text"]) == (text, user_text)
    answer, rate_hz = soundfile.read(tmp_path / "answer.wav", dtype="int16")
    assert rate_hz == 22050
    assert np.abs(answer.astype(int) - audio).max() <= LSB
    assert f"agent: {text}" in capsys.readouterr().out


def test_a_recording_of_another_rate_and_two_channels_is_heard(address, tmp_path):
    soundfile.write(tmp_path / "question.flac", np.full((4000, 2), 0.1), 8000)
    assert main(["say", address, str(tmp_path / "question.flac"), str(tmp_path / "answer.wav"), "--tail", "0"]) == 0
    record = json.loads((tmp_path / "answer.json").read_text())
    heard = [frame["user_level_db"] for frame in record["frames"] if frame["heard"]]
    assert len(heard) == 7  # half a second
    assert heard[3] == pytest.approx(-20, abs=0.1)


def test_a_load_test_counts_and_bad_users_are_sent_away(talker, tmp_path, capsys):
    limits = replace(PATIENT, max_sessions=3, idle_s=1.0, ahead_frames=25)
    with server(talker, limits) as address:
        out = tmp_path / "load.json"
        main(["load", address, "--sessions", "1", "--seconds", "4", "--rubbish", "--out", str(out)])
    report = json.loads(out.read_text())
    undisturbed, beside = report["rounds"]
    for figures in (undisturbed, beside):
        assert figures["sessions"] == 1
        assert figures["frames_sent"] == 50
        assert figures["sent_away"] == []
        assert figures["lag_ms"]["p50"] <= figures["lag_ms"]["max"]
    assert {"rubbish: as expected", "too fast: as expected", "vanished: gone"} <= beside["beside"].keys()
    assert all(outcome.endswith((": as expected", ": gone")) for outcome in beside["beside"])
    assert "beside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["load", "http://192.0.2.1:8765/"], "load is for a server on this machine"),
        (["load", "http://localhost:1/", "--sessions", "0"], "--sessions 0: give numbers from 1 to 256"),
        (["load", "http://localhost:1/", "--seconds", "9999"], "--seconds 9999: give 1 to 300"),
        (["load", "http://localhost:1/"], "Is hatch run talk:serve running there?"),
        (["say", "localhost:1", "WAV", "a.wav"], "is no address of a talk page: give http://localhost:8765/"),
        (["say", "http://localhost:1/", "NO.wav", "a.wav"], "no recording"),
        (["say", "http://localhost:1/", "TEXT", "a.wav"], "can't be read as audio"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(arguments, told, tmp_path, capsys):
    soundfile.write(tmp_path / "WAV", np.zeros(1600), 16000, format="WAV")
    (tmp_path / "TEXT").write_text("no audio")
    known = {"WAV", "TEXT", "NO.wav", "a.wav"}
    assert main([str(tmp_path / one) if one in known else one for one in arguments]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_a_server_with_too_few_places_is_told_what_it_needs(address, capsys):
    assert main(["load", address, "--sessions", "1", "--rubbish"]) == 2
    assert "the server has 2 places, and 3 are needed" in capsys.readouterr().err


def user(lags_s, *, error=""):
    """Answers that came so long after their frames."""
    frames = [{"heard": True, "skipped": 0, "tick_ms": 1.0} for _ in lags_s]
    sent = [float(number) for number in range(len(lags_s))]
    came = [at + lag for at, lag in zip(sent, lags_s, strict=True)]
    return Answers({"frame_length_s": 0.08}, frames, [b""] * len(frames), sent, came, error=error)


def test_held_at_real_time_means_99_of_100_frames_answered_within_three():
    assert is_held(user([0.2] * 99 + [0.5]), 100)
    assert not is_held(user([0.2] * 98 + [0.5] * 2), 100)
    assert not is_held(user([0.2] * 98), 100)  # two were never answered
    assert not is_held(user([0.2] * 100, error="sent away"), 100)
    assert not is_held(Answers(), 100)
    assert not Round([user([0.1] * 100), user([0.3] * 100)], 100).is_held
