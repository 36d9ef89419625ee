"""A codec's ceiling: demo's own codec and corpus."""

import json
from pathlib import Path

import numpy as np
import soundfile

from recipes.talk import ceiling

DEMO = Path(__file__).parents[2] / "demo"


def test_speech_before_and_behind_the_codec_lie_beside_each_other(tmp_path):
    assert (
        ceiling.main([str(DEMO / "codec.nemo"), str(DEMO / "corpus/heldout"), str(tmp_path), "--dialogues", "2"]) == 0
    )
    names = sorted(path.stem for path in (tmp_path / "hyp").glob("*.wav"))
    assert len(names) == 2
    for name in names:
        behind, before = (soundfile.read(tmp_path / part / f"{name}.wav") for part in ("hyp", "ref"))
        assert behind[1] == before[1] == 22050
        assert behind[0].shape == before[0].shape
        loud = [np.abs(audio[: len(audio) // 441 * 441]).reshape(-1, 441).mean(1) for audio, _ in (behind, before)]
        assert np.corrcoef(loud)[0, 1] > 0.8
        assert not np.array_equal(behind[0], before[0])
        turns = json.loads((tmp_path / "ref" / f"{name}.json").read_text())["turns"]
        assert {turn["role"] for turn in turns} == {"user", "agent"}
        assert all(turn["text"] and turn["duration"] > 0 for turn in turns)


def test_a_folder_without_a_corpus_is_told(tmp_path, capsys):
    assert ceiling.main([str(DEMO / "codec.nemo"), str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert f"SHAR: the Shar folder {tmp_path}/none doesn't exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
