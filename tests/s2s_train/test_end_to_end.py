"""The command line with the real model, data and scorers, all tiny: a run, then the same command for longer."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.cli import main
from s2s_train.run_folder import RunFolder
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm, model_config
from tests.s2s_parallel.trainers import fit_on_ranks
from tests.s2s_train.builders import CLOCK


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("end_to_end")
    corpus = write_shar(folder / "corpus", dialogues("cut", 6))
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo")),
        "data": {
            "train_ds": {"shar_path": corpus, "batch_size": 2, "shuffle_buffer_size": 4},
            "validation_ds": {
                "batch_size": 3,
                "datasets": {"seen": {"shar_path": corpus}, "few": {"shar_path": corpus, "max_duration": 2.0}},
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "limit_train_batches": 2,
            "val_check_interval": 2,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_fit_then_fit_for_longer(config, monkeypatch, capsys):
    monkeypatch.chdir(config.parent)
    assert main(["fit", config.name]) == 0
    run = RunFolder(Path("runs/tiny"))
    for path in (run.config, run.metrics, run.last_checkpoint, run.report):
        assert path.is_file(), path
    assert list(run.samples.rglob("*.wav"))
    capsys.readouterr()
    assert main(["fit", config.name, "trainer.max_steps=4"]) == 0
    assert "resuming from" in capsys.readouterr().out
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "train_loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "val_loss" in line] == [2, 4]
    names = set().union(*lines)
    assert {"train_text_loss", "train_audio_loss", "val_loss_seen", "val_loss_few", "val_txt_bleu"} <= names
    assert AtomicCheckpointIO().load_checkpoint(run.last_checkpoint)["global_step"] == 4


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_nemos_strategy_on_two_processes_is_one_process_and_goes_on_upon_it(config, monkeypatch, tmp_path):
    monkeypatch.chdir(config.parent)
    strategy = (
        "{_target_: lightning.pytorch.strategies.ModelParallelStrategy, data_parallel_size: 1, tensor_parallel_size: 2}"
    )
    fit = ["fit", config.name, "trainer.gradient_clip_val=1.0"]
    shared = [*fit, "name=shared", "trainer.devices=2", f"trainer.strategy={strategy}"]
    assert fit_on_ranks(main, tmp_path, shared, world_size=2) == [0, 0]
    assert main([*fit, "name=alone"]) == 0
    runs = {name: RunFolder(Path("runs") / name) for name in ("shared", "alone")}
    assert runs["shared"].last_checkpoint.is_dir()
    for together, alone in zip(lines_of(runs["shared"]), lines_of(runs["alone"]), strict=True):
        assert together.keys() == alone.keys()
        for name in together.keys() - CLOCK:
            assert together[name] == pytest.approx(alone[name], rel=1e-4), name
    wavs = {name: sorted(path.name for path in run.samples.rglob("*.wav")) for name, run in runs.items()}
    assert wavs["shared"] == wavs["alone"]
    for name in runs:
        assert main([*fit, f"name={name}", "trainer.max_steps=4"]) == 0
    last = {name: [line["train_loss"] for line in lines_of(run) if "train_loss" in line] for name, run in runs.items()}
    assert len(last["shared"]) == 4
    assert last["shared"] == pytest.approx(last["alone"], rel=1e-4)


def test_a_checkpoint_is_validated_alone_as_in_its_run_on_any_mesh(config, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(config.parent)
    name = "name=checked"
    assert main(["fit", config.name, name, "exp_manager.checkpoint_callback_params.save_top_k=1"]) == 0
    run = RunFolder(Path("runs/checked"))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file()}
    in_run = next(line for line in lines_of(run) if "val_loss" in line)
    capsys.readouterr()
    assert main(["validate", config.name, name]) == 0
    assert "last.ckpt at step 2" in capsys.readouterr().out
    strategy = "{_target_: s2s_parallel.strategy.MeshStrategy, data_parallel_size: 2}"
    shared = ["validate", config.name, name, "ckpt=best", "trainer.devices=2", f"trainer.strategy={strategy}"]
    assert fit_on_ranks(main, tmp_path, shared, world_size=2) == [0, 0]
    validations = RunFolder(run.path / "validations")
    assert validations.report.is_file()
    assert list(validations.samples.rglob("*.wav"))
    alone, on_mesh = lines_of(validations)
    for checked in (alone, on_mesh):
        assert checked["step"] == 2
        for metric in {metric for metric in in_run if metric.startswith("val_")}:
            assert checked[metric] == pytest.approx(in_run[metric], rel=1e-4), metric
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_more_processes_than_dialogues_validate_as_one(config, monkeypatch, tmp_path):
    sections = yaml.safe_load(config.read_text())
    corpus = write_shar(tmp_path / "two", dialogues("two", 2))
    sections["data"]["validation_ds"] |= {"batch_size": 1, "datasets": {"two": {"shar_path": corpus}}}
    (config.parent / "two.yaml").write_text(yaml.safe_dump(sections))
    monkeypatch.chdir(config.parent)
    validate = ["validate", "two.yaml", "ckpt=none"]
    assert main([*validate, "name=alone"]) == 0
    shared = [*validate, "name=three", "trainer.devices=3", "trainer.strategy=ddp"]
    assert fit_on_ranks(main, tmp_path, shared, world_size=3) == [0, 0, 0]
    (alone,), (three,) = (lines_of(RunFolder(Path("runs") / name / "validations")) for name in ("alone", "three"))
    assert alone.keys() == three.keys()
    for name in alone.keys() - {"time_s"}:
        assert three[name] == pytest.approx(alone[name], rel=1e-4), name
    written = [path.read_text() for path in Path("runs/three/validations").rglob("dialogues.jsonl")]
    assert sorted(json.loads(line)["cut_id"] for text in written for line in text.splitlines()) == ["two000", "two001"]


def test_validate_says_which_checkpoint_is_missing(config, monkeypatch, capsys):
    monkeypatch.chdir(config.parent)
    assert main(["validate", config.name, "name=unborn"]) == 2
    assert "no checkpoint at runs/unborn/checkpoints/last.ckpt" in capsys.readouterr().err
    assert main(["validate", config.name, "name=unborn", "ckpt=/nowhere.ckpt"]) == 2
    assert "nowhere.ckpt" in capsys.readouterr().err
    assert main(["validate", config.name, "name=unborn", "ckpt=none", "trainer.limit_val_batches=1"]) == 0
    assert "the weights that the config gives" in capsys.readouterr().out


def test_rates_that_do_not_fit_end_in_one_line(config, monkeypatch, capsys):
    monkeypatch.chdir(config.parent)
    assert main(["fit", config.name, "name=rates", "data.target_sample_rate=24000"]) == 2
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert "data.target_sample_rate is 24000 Hz, but the model's is 22050 Hz" in last_line
    assert not Path("runs/rates").exists()
