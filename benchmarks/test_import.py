"""How long a process waits for `import s2s_data`, beside torch and lhotse, which it can't do without."""

import subprocess
import sys
from typing import Any

import pytest


@pytest.mark.parametrize("modules", ["torch, lhotse", "s2s_data", "s2s_data.loader"])
def test_import(benchmark: Any, modules: str) -> None:
    command = [sys.executable, "-c", f"import {modules}"]
    done = benchmark.pedantic(subprocess.run, args=(command,), kwargs={"check": True}, rounds=2, warmup_rounds=1)
    assert done.returncode == 0
