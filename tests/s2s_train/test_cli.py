import subprocess
import sys

import pytest

from s2s_train.cli import main
from tests.s2s_train.builders import write_config


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for part in ("KEY=VALUE", "fit apps/train/conf/demo.yaml", "Exit codes"):
        assert part in text


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["fit", *argv]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    return lines[0]


def test_a_typo_ends_in_one_line_and_exit_code_2(folder, corpus, capsys):
    path = str(write_config(folder, corpus))
    assert "unknown key trainer.max_stps: did you mean trainer.max_steps?" in told(capsys, path, "trainer.max_stps=1")
    assert "no config file nowhere.yaml" in told(capsys, "nowhere.yaml")
    assert not (folder / "runs").exists(), "nothing was started"


def test_debug_shows_the_traceback(folder, corpus):
    with pytest.raises(ValueError, match="max_stps"):
        main(["fit", "--debug", str(write_config(folder, corpus)), "trainer.max_stps=1"])


def test_a_typo_is_told_before_the_slow_imports(folder, corpus):
    code = """
import sys
from s2s_train.cli import main
assert main(["fit", sys.argv[1], "trainer.max_stps=1"]) == 2
print([name for name in ("nemo", "lightning", "transformers") if name in sys.modules])
"""
    path = str(write_config(folder, corpus))
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
