"""`s2s-data check`: one of every defect, and a clean corpus."""

from pathlib import Path

import numpy as np
import pytest
from lhotse import MonoCut

from s2s_data.cli import main
from tests.s2s_data.builders import dialogue, dialogues, write_shar

USER = ("user", 0.0, 0.8, "what is two")
AGENT = ("agent", 0.88, 0.72, "it is four")


def silent() -> MonoCut:
    cut = dialogue("cut")
    cut.target_audio.sources[0].source = cut.target_audio.sources[0].source[:44] + bytes(44100 * 2)
    assert not np.any(cut.load_target_audio())
    return cut


def with_wrong_codes() -> MonoCut:
    cut = dialogue("cut")
    return cut.attach_tensor("target_codes", np.zeros((12, 4), np.int32), frame_shift=0.16, temporal_dim=0)


DEFECTS = {
    "no target_audio and no target_codes": dialogue("cut", audio=False),
    "speaker 'dog' is in neither role": dialogue("cut", turns=[USER, AGENT, ("dog", 0.0, 0.5, "wuff")]),
    "the agent has no turn": dialogue("cut", turns=[USER]),
    "agent turn at 0.88-2.88 s lies outside the cut's 2.00 s": dialogue("cut", turns=[("agent", 0.88, 2.0, "hi")]),
    "agent turn at 0.88-1.60 s has no text": dialogue("cut", turns=[("agent", 0.88, 0.72, "")]),
    "has 5 words for 4 frames": dialogue("cut", turns=[("agent", 0.88, 0.32, "a b c d e")]),
    "overlaps the next turn of the same side, at 1.20 s": dialogue("cut", turns=[AGENT, ("agent", 1.2, 0.4, "x")]),
    "agent turn at 0.88-1.60 s is silent in target_audio": silent(),
    "target_codes have 12 frames, the cut 25": with_wrong_codes(),
}


@pytest.mark.parametrize("message", DEFECTS)
def test_defect_is_listed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], message: str) -> None:
    cut = DEFECTS[message]
    shar = write_shar(tmp_path / "shar", [dialogue("good"), cut], codes=cut.has_custom("target_codes"))
    assert main(["check", shar]) == 1
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert any(line.startswith("cut: ") and message in line for line in lines), out
    assert not any(line.startswith("good: ") for line in lines)
    assert lines[-1] == f"{shar}: 2 cuts, {len(lines) - 1} problems"


def test_clean_corpus_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4, codes=True), codes=True)
    assert main(["check", shar]) == 0
    assert capsys.readouterr().out == f"{shar}: 4 cuts, 0 problems\n"


def test_other_roles(tmp_path: Path) -> None:
    shar = write_shar(tmp_path / "shar", [dialogue("d", turns=[("caller", 0, 0.8, "hi"), ("bot", 0.88, 0.72, "ho")])])
    assert main(["check", shar]) == 1
    assert main(["check", shar, "--input-roles", "caller", "--output-roles", "bot"]) == 0


def test_broken_shard_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shar = write_shar(tmp_path / "shar", dialogues("d", 4), shard_size=2)
    tar = tmp_path / "shar" / "recording.000001.tar"
    tar.write_bytes(tar.read_bytes()[:700])
    assert main(["check", shar]) == 1
    assert "(shard): unreadable Shar shard" in capsys.readouterr().out


def test_no_shar_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
