"""Importing s2s_data is cheap, and every public name is there."""

import subprocess
import sys

import s2s_data


def test_every_public_name_is_found():
    assert set(s2s_data.__all__) == set(s2s_data._MODULES)
    for name in s2s_data.__all__:
        assert getattr(s2s_data, name).__name__ == name


def test_importing_it_imports_nothing_heavy():
    code = "import sys, s2s_data, s2s_data.config, s2s_data.cli; print({'torch', 'lhotse'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
