"""`s2s-data show`: what is drawn of a cut is what the model gets of it."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from s2s_data import DataError
from s2s_data.cli import main
from s2s_data.roles import Roles
from s2s_data.show import find_cut, view_cut
from s2s_data.show.terminal import as_text
from tests.s2s_data.broken_corpus import ASKED, make, write

EXPECTED = """\
cut d2: 4.00 s, 50 frames
a column is a frame: [ BOS, w a word (it stands for its tokens), ] EOS, . PAD

      |0.00 s
user       ▅▅▅▅▅▅▅▅▅▅▅▅▅▅▅
      .....[wwwww.........]...........
      .........................[www...
agent                          ▅▅▅▅▅▅▅

      |2.56 s
user
      ..................
      ...]..............
agent ▅▅▅

user    0.40-1.60 s, frames 5-20: What is two and two?
agent   2.00-2.80 s, frames 25-35: It is four.
"""


@pytest.fixture
def shar(tmp_path: Path) -> str:
    return str(write(tmp_path / "shar", [make(f"d{number}") for number in range(6)]))


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "38")


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("which", [["--cut", "d2"], ["--index", "2"]])
def test_text(shar: str, which: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", shar, *which]) == 0
    assert capsys.readouterr().out == EXPECTED


def test_cuts_of_later_shards_are_found(shar: str) -> None:
    assert find_cut(shar, index=5).id == find_cut(shar, cut_id="d5").id == "d5"


@pytest.mark.parametrize(("which", "named"), [(["--cut", "nobody"], "cut 'nobody'"), (["--index", "6"], "cut 6")])
def test_no_such_cut(shar: str, which: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", shar, *which]) == 2
    err = capsys.readouterr().err
    assert f"there is no {named}" in err
    assert "among its 6 cuts" in err


@pytest.mark.parametrize("name", ["a.wav", "in/a.wav", "in__b", "n__a"])
def test_a_near_id_is_named(tmp_path: Path, name: str) -> None:
    shar = str(write(tmp_path / "shar", [make("in__a"), make("other")]))
    with pytest.raises(DataError, match=r"among its 2 cuts: did you mean 'in__a'\?"):
        find_cut(shar, cut_id=name)


def test_words_that_dont_fit_are_counted() -> None:
    cut = make("long", [ASKED, ("agent", 2.0, 0.4, "one two three four five six")])
    view = view_cut(cut, Roles.of(["user"], ["agent"]))
    assert view.agent.words_T[25:31] == ("BOS", "one", "two", "three", "four", "EOS")
    assert as_text(view).endswith("2 words of the agent don't fit their turns and are cut")


def test_codes_alone() -> None:
    view = view_cut(make("coded", target=None), Roles.of(["user"], ["agent"]))
    assert "agent no audio, codes alone" in as_text(view)


def test_picture(shar: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pictures" / "d2.png"
    assert main(["show", shar, "--cut", "d2", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as picture:
        colours = picture.convert("RGB").getcolors(1 << 20)
        assert picture.size == (640, 520)
    assert colours is not None
    assert len(colours) > 50  # blue, orange, their shades: not an empty frame


def test_no_matplotlib_says_how_to_get_it(
    shar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["show", shar, "--out", str(tmp_path / "no.png")]) == 2
    assert capsys.readouterr().err == "s2s-data: pictures need matplotlib: pip install 's2s-data[plots]'\n"
    assert main(["stats", shar, "--plots", str(tmp_path / "plots")]) == 2
    assert main(["show", shar]) == 0
