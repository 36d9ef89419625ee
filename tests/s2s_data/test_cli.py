"""The frame of the command line."""

from pathlib import Path
from typing import Any

import pytest

from s2s_data.cli import build_parser, main
from s2s_data.commands import NAMES, stats
from s2s_data.importing import stereo

COMMANDS = [name.replace("_", "-") for name in NAMES]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert [name for name in listed if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: s2s-data {command} ")


@pytest.mark.parametrize("argv", [[], ["no-such-command"], ["check"], ["check", "x", "--workers", "-1"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(argv)
    assert stop.value.code == 2
    assert "usage: s2s-data" in capsys.readouterr().err


def test_ctrl_c_says_whether_the_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stereo, "write_dialogues", stopped)
    (tmp_path / "a.wav").touch()
    assert main(["import-stereo", str(tmp_path), str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "s2s-data: stopped: the same command goes on where it was\n"
    monkeypatch.setattr(stats, "run", stopped)
    assert main(["stats", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "s2s-data: stopped\n"
