"""The command as a user runs it: an exported model, a port, Ctrl-C."""

import asyncio
import re
import signal
import subprocess
import sys

import pytest

from s2s_talk.cli import main
from tests.s2s_talk.builders import client, noise


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    model.save_pretrained(folder)
    return folder


def test_it_serves_an_export_and_stops_politely_on_sigterm(exported):
    command = [sys.executable, "-m", "s2s_talk", "serve", str(exported), "--port", "0", "--max-duration", "20"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        lines = []
        while not (found := re.search(r"open (http\S+) in a browser", "".join(lines))):
            line = process.stdout.readline()
            assert line, process.stderr.read()
            lines.append(line)
        assert re.search(r"80 ms of audio take \d+ ms with all places taken \(2\)", "".join(lines))

        async def talk():
            async with client(found[1]) as user:
                await user.send(noise(3))
                await user.read(3)
                process.send_signal(signal.SIGTERM)
                await user.read()
                return user.ws.close_code, user.error

        code, error = asyncio.run(talk())
        assert (code, error["text"]) == (1001, "the server is being stopped")
        assert process.wait(60) == 0
        assert process.stdout.read() == "stopped\n"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["RUN"], "is a run's: first hatch run train:export"),
        (["RUN/checkpoints/last.ckpt"], "is a run's: first hatch run train:export"),
        (["OTHER"], "no exported model, it has no config.json of one: hatch run train:export RUN OUT writes one"),
        (["NOWHERE"], "no folder"),
        (["OTHER", "--host", "0.0.0.0"], "--host 0.0.0.0 isn't this machine alone"),
        (["OTHER", "--max-sessions", "0"], "--max-sessions is 0: give 1 or more"),
        (["OTHER", "--max-duration", "nan"], "--max-duration is nan: give seconds, from 1"),
        (["OTHER", "--port", "65536"], "--port is 65536: give one from 0"),
    ],
)
def test_what_the_user_can_mend_is_said_in_one_line(arguments, told, tmp_path, capsys):
    (tmp_path / "RUN" / "checkpoints").mkdir(parents=True)
    (tmp_path / "OTHER").mkdir()
    assert main(["serve", str(tmp_path / arguments[0]), *arguments[1:]]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("answer", "told"), [("answer", "give a name that ends in .wav"), ("nowhere/answer.wav", "there is no folder")]
)
def test_an_answer_that_could_not_be_written_is_told_before_the_conversation(answer, told, tmp_path, capsys):
    assert main(["say", "http://localhost:1/", "question.wav", str(tmp_path / answer)]) == 2
    assert told in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(exported, capsys):
    assert main(["serve", str(exported), "--device", "cuda:7"]) == 2
    assert "--device cuda:7 can't be used here" in capsys.readouterr().err
