"""`test` and `predict` on a real run of a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from s2s_model import DuplexS2SModel
from s2s_train.cli import main
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm, model_config

RATE_HZ = 16000


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run runs/tiny and its export."""
    folder = tmp_path_factory.mktemp("predict")
    corpus = write_shar(folder / "corpus", dialogues("cut", 3))
    sets = {"batch_size": 2, "datasets": {"seen": {"shar_path": corpus}}}
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo")),
        "data": {"train_ds": {"shar_path": corpus, "batch_size": 2, "shuffle_buffer_size": 2}, "validation_ds": sets},
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 1,
            "limit_train_batches": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
        },
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "tiny.yaml"]) == 0
        assert main(["export", "runs/tiny", "exported"]) == 0
        for name, seconds in (("short", 0.8), ("long", 1.6)):
            noise = np.random.default_rng(0).normal(0, 0.1, int(seconds * RATE_HZ)).astype(np.float32)
            (folder / "calls").mkdir(exist_ok=True)
            soundfile.write(f"calls/{name}.wav", noise, RATE_HZ)
        soundfile.write("stereo.wav", np.stack([noise, 0 * noise], 1), RATE_HZ)
    return folder


@pytest.fixture(autouse=True)
def there(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def told(capsys, *argv: object) -> str:
    assert main([*map(str, argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return str(line)


def test_a_folder_of_wavs_is_answered_as_the_model_answers_them(tmp_path):
    out = tmp_path / "out"
    assert main(["predict", "exported", "calls", "--out", str(out)]) == 0
    model = DuplexS2SModel.from_pretrained("exported")
    assert [line["id"] for line in lines(out)] == ["long", "short"]
    for line in lines(out):
        audio, _ = soundfile.read(f"calls/{line['id']}.wav", dtype="float32")
        alone = model.offline_inference(torch.from_numpy(audio)[None], torch.tensor([len(audio)]))
        assert line["text"] == alone["text"][0]
        assert [tuple(turn.values()) for turn in line["turns"]] == [tuple(turn) for turn in alone["text_turns"][0]]
        agent, rate_hz = soundfile.read(out / line["agent_wav"], dtype="float32")
        stereo, _ = soundfile.read(out / line["stereo_wav"], dtype="float32")
        assert rate_hz == model.target_sample_rate
        np.testing.assert_allclose(agent, alone["audio"][0, : int(alone["audio_len"][0])].numpy(), atol=1e-3)
        np.testing.assert_array_equal(stereo[: len(agent), 1], agent)
        assert np.abs(stereo[:, 0]).max() > 0.1, "the user is on the left"
        assert line["duration_s"] == pytest.approx(len(audio) / RATE_HZ)


def test_a_run_answers_a_shar_and_its_own_sets_alike(tmp_path):
    assert main(["predict", "runs/tiny", "corpus", "--out", str(tmp_path / "shar"), "--batch-size", "2"]) == 0
    assert main(["predict", "runs/tiny", "set:seen", "--out", str(tmp_path / "set"), "--batch-size", "3"]) == 0
    of_shar, of_set = lines(tmp_path / "shar"), lines(tmp_path / "set")
    assert len(of_shar) == 3
    assert [line["text"] for line in of_shar] == [line["text"] for line in of_set]


def test_sampling_draws_by_the_seed(tmp_path):
    def texts(name: str, *flags: str) -> list[str]:
        assert main(["predict", "exported", "calls", "--out", str(tmp_path / name), *flags]) == 0
        return [line["text"] for line in lines(tmp_path / name)]

    hot = ["--sampling", "text.temperature=2.0", "audio.temperature=1.0"]
    first, again = texts("a", *hot, "--seed", "1"), texts("b", *hot, "--seed", "1")
    assert first == again
    assert first != texts("c", *hot, "--seed", "2")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere", "calls"], "no run nowhere"),
        (["exported", "cals"], "cals doesn't exist: give audio files"),
        (["exported", "exported/llm"], "has no audio files and no Shar"),
        (["exported", "set:seen"], "an export knows no data sets"),
        (["runs/tiny", "set:sen"], "its sets are seen"),
        (["exported", "stereo.wav"], "stereo.wav has 2 channels: say which is the user's with --channel"),
        (["exported", "stereo.wav", "--channel", "2"], "--channel 2: stereo.wav has 2 channels"),
        (["exported", "calls", "--batch-size", "0"], "--batch-size is 0"),
        (["exported", "calls", "--sampling", "text.temprature=1"], "temprature"),
        (["exported", "tiny.yaml"], "no audio can be read from tiny.yaml"),
    ],
)
def test_what_cannot_be_answered_is_told_in_one_line(tmp_path, capsys, argv, said):
    assert said in told(capsys, "predict", *argv, "--out", tmp_path / "out")


def test_predictions_are_not_written_over(tmp_path, capsys):
    assert main(["predict", "exported", "stereo.wav", "--channel", "0", "--out", str(tmp_path)]) == 0
    assert "holds predictions already" in told(capsys, "predict", "exported", "calls", "--out", tmp_path)


def test_recordings_are_not_written_over(capsys):
    before = Path("calls/short.wav").read_bytes()
    assert "calls isn't empty" in told(capsys, "predict", "exported", "calls/short.wav", "--out", "calls")
    assert Path("calls/short.wav").read_bytes() == before


def test_each_recording_has_files_of_its_own(tmp_path):
    for name in ("a", "sub/a", "a-2", "a.agent"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("calls/short.wav", tmp_path / "in" / f"{name}.wav")
    assert main(["predict", "exported", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    named = [line[kind] for line in lines(tmp_path / "out") for kind in ("agent_wav", "stereo_wav")]
    assert len(set(named)) == 8
    assert {path.name for path in (tmp_path / "out").glob("*.wav")} == set(named)


def test_all_broken_files_are_named_before_anything_is_answered(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    shutil.copy("calls/short.wav", tmp_path / "in" / "good.wav")
    (tmp_path / "in" / "junk.wav").write_text("no audio")
    (tmp_path / "in" / "nothing.wav").write_bytes(b"")
    command = ["predict", "exported", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "junk.wav" in said
    assert "nothing.wav" in said
    for name in ("junk.wav", "nothing.wav"):
        (tmp_path / "in" / name).unlink()
    assert main(command) == 0
    assert [line["id"] for line in lines(tmp_path / "out")] == ["good"]


def test_the_test_sets_are_scored_under_their_own_names(capsys):
    few = ["data.test_ds.datasets.few.shar_path=corpus", "data.test_ds.batch_size=2", "trainer.limit_test_batches=1"]
    before = Path("runs/tiny/metrics.jsonl").read_text()
    assert main(["test", "tiny.yaml", *few]) == 0
    (line,) = [json.loads(text) for text in Path("runs/tiny/tests/metrics.jsonl").read_text().splitlines()]
    assert {"test_loss", "test_loss_few", "test_txt_bleu_few"} <= line.keys()
    assert not [name for name in line if name.startswith("val_")]
    assert line["step"] == 1
    assert "│ few " in capsys.readouterr().out
    assert Path("runs/tiny/tests/report.html").is_file()
    assert Path("runs/tiny/metrics.jsonl").read_text() == before
    assert main(["validate", "tiny.yaml"]) == 0
    (of_validation,) = [
        json.loads(text) for text in Path("runs/tiny/validations/metrics.jsonl").read_text().splitlines()
    ]
    assert "val_loss_seen" in of_validation


def test_no_test_sets_are_told(capsys):
    assert "data.test_ds.datasets is empty: there is nothing to test on" in told(capsys, "test", "tiny.yaml")
    typo = "data.test_ds.datasets={few: {shar_pth: x}}"
    assert "data.test_ds.datasets.few" in told(capsys, "test", "tiny.yaml", typo)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_help_teaches(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert f"  {command} " in text
    assert "examples:" in text
