"""What a run's folder says of the code, the packages and the machine that it was started with."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from s2s_train import environment
from s2s_train.environment import describe_environment, git_state, write_environment
from tests.s2s_train.builders import run, write_config


def repository(folder: Path) -> Path:
    folder.mkdir()
    (folder / "code.py").write_text("a = 1\n")
    for command in (
        ["init", "-q", "-b", "trunk"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=n@n", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_a_run_writes_what_it_was_started_with_once_a_start(folder, corpus):
    path = write_config(folder, corpus, trainer={"max_steps": 1})
    first = run(path, "a")
    run(path, "a", "trainer.max_steps=2")
    found = [json.loads((first.path / name).read_text()) for name in ("environment.json", "environment-2.json")]
    assert [each["start"] for each in found] == [1, 2]
    assert found[0]["packages"]["torch"] == version("torch")
    assert Path(sys.argv[0]).name in found[0]["command"]
    assert found[0]["folder"] == str(folder)
    assert found[0]["hardware"]["cpus"] > 0


def test_the_state_of_the_code_can_be_restored(tmp_path, monkeypatch):
    code = repository(tmp_path / "code")
    assert git_state(code)["dirty"] is False
    (code / "code.py").write_text("a = 2\n")
    (code / "new.py").write_text("")
    state = git_state(code)
    commit = subprocess.run(["git", "-C", str(code), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert state == {"commit": commit.stdout.strip(), "branch": "trunk", "dirty": True, "untracked": ["new.py"]}
    monkeypatch.setattr(environment, "__file__", str(code / "code.py"))
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    write_environment(run_folder)
    (code / "code.py").write_text("a = 1\n")
    subprocess.run(["git", "-C", str(code), "apply", str(run_folder / "changes.patch")], check=True)
    assert (code / "code.py").read_text() == "a = 2\n"


def test_the_patch_is_plain_whatever_git_is_told(tmp_path, monkeypatch):
    code = repository(tmp_path / "code")
    for key, value in (("color.ui", "always"), ("diff.noprefix", "true"), ("diff.external", "echo")):
        subprocess.run(["git", "-C", str(code), "config", key, value], check=True)
    (code / "code.py").write_text("a = 2\n")
    monkeypatch.setattr(environment, "__file__", str(code / "code.py"))
    write_environment(tmp_path)
    (code / "code.py").write_text("a = 1\n")
    subprocess.run(["git", "-C", str(code), "apply", str(tmp_path / "changes.patch")], check=True)
    assert (code / "code.py").read_text() == "a = 2\n"


def test_code_outside_a_repository_has_no_git_state(tmp_path):
    assert describe_environment(tmp_path)["git"] is None
