"""Profiles of real steps on a CPU, and the reading of a GPU's trace."""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2s_train.composition import build_model
from s2s_train.config import load_config
from s2s_train.fit import fit
from s2s_train.profile import profile_steps
from s2s_train.profile_cli import add_profile
from s2s_train.profile_config import ProfileConfig
from s2s_train.profile_ranges import PARTS, PREFIX
from s2s_train.profile_steps import StepProfiler
from s2s_train.profile_trace import GPU_IDLE, read_trace
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm, model_config
from tests.s2s_parallel.trainers import fit_on_ranks


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    corpus = write_shar(folder / "corpus", dialogues("cut", 12))
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo")),
        "data": {"train_ds": {"shar_path": corpus, "batch_size": 2}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_profile(parser.add_subparsers())
    args = parser.parse_args(["profile", *arguments])
    exit_code: int = args.run_command(args)
    return exit_code


def named(path: Path) -> list[str]:
    with gzip.open(path, "rt") as file:
        return [event["name"] for event in json.load(file)["traceEvents"] if event.get("cat") == "user_annotation"]


def test_the_command_prints_each_part_and_leaves_a_trace(config, monkeypatch, capsys):
    monkeypatch.chdir(config.parent)
    assert command("tiny.yaml", "trainer.accumulate_grad_batches=2", "--steps", "1:4") == 0
    printed = capsys.readouterr().out
    shares = {part: float(line.split("│")[3].strip(" %")) for part in PARTS for line in lines_of(printed, part)}
    assert set(shares) == set(PARTS)
    assert sum(shares.values()) == pytest.approx(100, abs=0.05 * len(PARTS))
    for part in ("data wait", "codec", "perception", "LLM", "heads and loss", "backward", "optimizer"):
        assert f"│ {part} " in printed
    assert "steps 1 to 3" in printed
    folder = Path("runs/tiny/profile")
    assert [file.name for file in folder.iterdir()] == ["trace.rank0.json.gz"]
    names = named(folder / "trace.rank0.json.gz")
    for part in ("codec", "perception", "LLM", "heads and loss", "backward"):
        assert names.count(PREFIX + part) == 3 * 2, "three steps of two batches"
    assert names.count(PREFIX + "optimizer") >= 3
    assert not (folder.parent / "checkpoints").exists(), "the run itself is left alone"


def lines_of(printed: str, part: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(f"│ {part} ")]


def test_parts_add_up_and_the_model_is_left_as_it_was(config, tmp_path):
    models = []

    def build(cfg):
        models.append(build_model(cfg))
        return models[0]

    profiler = profile_steps(load_config(config), ProfileConfig([0, 2]), tmp_path / "out", build)
    times = profiler.times
    assert times is not None
    assert sum(times.parts_ms.values()) == pytest.approx(times.step_ms, rel=1e-6)
    assert min(times.parts_ms.values()) >= 0
    for part in ("codec", "perception", "LLM", "backward", "optimizer"):
        assert times.parts_ms[part] > 0
    assert times.parts_ms["communication"] == 0
    wrapped = {"encode_source", "target_codes", "hidden_states", "_logits", "_loss_sums"}
    assert not wrapped & vars(models[0]).keys()


def test_a_run_is_profiled_on_its_way(config, tmp_path):
    cfg = load_config(config, ["name=run", "trainer.max_steps=4", f"exp_manager.exp_dir={tmp_path}"])
    cfg.trainer.log_every_n_steps = 1
    run = fit(cfg, build_model, lambda cfg, folder: [StepProfiler(ProfileConfig([1, 3]), folder.path / "profile")])
    names = named(run.path / "profile" / "trace.rank0.json.gz")
    assert names.count(PREFIX + "backward") == 2
    assert run.last_checkpoint.is_file()
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [1, 2, 3, 4]


def test_communication_of_ranks_is_seen(config, tmp_path):
    shown = fit_on_ranks(on_ranks, tmp_path, config, tmp_path / "out")
    for parts_ms, step_ms in shown:
        assert parts_ms["communication"] > 0
        assert sum(parts_ms.values()) == pytest.approx(step_ms, rel=1e-6)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["trace.rank0.json.gz", "trace.rank1.json.gz"]


def on_ranks(config: Path, out: Path) -> Any:
    cfg = load_config(config, ["trainer.strategy=ddp", "trainer.devices=2"])
    times = profile_steps(cfg, ProfileConfig([1, 2]), out, build_model).times
    assert times is not None
    return times.parts_ms, times.step_ms


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--steps", "13:10"], r"--steps is \[13, 10\]: give a first step and an end behind it"),
        (["--steps", "10"], "--steps is '10': give FIRST:END"),
        (["--memory"], "profiling with memory needs a GPU"),
        (["--nvtx"], "profiling with nvtx needs a GPU"),
    ],
)
def test_refusals_say_what_to_do(config, flags, told, monkeypatch):
    monkeypatch.chdir(config.parent)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=told):
        command("tiny.yaml", *flags)


def test_steps_that_never_come_are_an_error(config, tmp_path):
    cfg = load_config(config, ["trainer.max_epochs=1", "trainer.limit_train_batches=2"])
    with pytest.raises(ValueError, match=r"training ended at step 2, before --steps \[3, 5\]"):
        profile_steps(cfg, ProfileConfig([3, 5]), tmp_path / "out", build_model)


# --- a GPU's trace -------------------------------------------------------------------------------------------------

MAIN, AUTOGRAD = 1, 2


def annotation(name: str, start: float, end: float) -> dict[str, Any]:
    event = {"ph": "X", "cat": "user_annotation", "name": PREFIX + name, "tid": MAIN}
    return event | {"ts": start, "dur": end - start}


def kernel(number: int, launch: float, start: float, end: float, name: str = "gemm", thread: int = MAIN) -> list[Any]:
    of_both = {"ph": "X", "args": {"correlation": number}}
    call = {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "tid": thread, "ts": launch, "dur": 1}
    run = {"cat": "kernel", "name": name, "tid": 7, "ts": start, "dur": end - start}
    return [of_both | call, of_both | run]


def write_trace(folder: Path, events: list[Any]) -> Path:
    path = folder / "trace.json.gz"
    with gzip.open(path, "wt") as file:
        json.dump({"traceEvents": [{"ph": "M", "name": "process_name"}, *events]}, file)
    return path


def test_gpu_time_belongs_to_the_range_that_launched_it(tmp_path):
    events = [
        annotation("steps", 1000, 2000),
        annotation("data wait", 1000, 1100),
        annotation("optimizer", 1100, 1900),
        annotation("other", 1110, 1400),  # the training step, within the optimizer's closure
        annotation("LLM", 1150, 1200),
        annotation("backward", 1400, 1600),
        *kernel(1, 1160, 1200, 1500),  # of the LLM, running long after its range
        *kernel(2, 1450, 1500, 1700, thread=AUTOGRAD),  # of backward, from autograd's thread
        *kernel(3, 1451, 1650, 1800, "ncclDevKernel_AllReduce", thread=AUTOGRAD),  # 50 beside backward's
        *kernel(4, 1700, 1800, 1850),  # the optimizer's
        *kernel(5, 1120, 1125, 1135),  # the training step's own
    ]
    times = read_trace(write_trace(tmp_path, events), 2)
    us = {part: round(2000 * spent) for part, spent in times.parts_ms.items() if spent}
    assert us == {
        "data wait": 100,
        "LLM": 300,
        "backward": 200,
        "communication": 100,
        "optimizer": 50,
        "other": 10,
        GPU_IDLE: 25 + 65 + 150,
    }
    assert times.step_ms == 0.5
    assert round(2000 * times.hidden_communication_ms) == 50
    assert sum(times.parts_ms.values()) == pytest.approx(times.step_ms)


def test_ranges_nest_on_a_cpu(tmp_path):
    events = [
        annotation("steps", 0, 100),
        annotation("optimizer", 10, 90),
        annotation("perception", 20, 40),
        annotation("LLM", 40, 50),
        {"ph": "X", "cat": "cpu_op", "name": "gloo:all_reduce", "tid": 9, "ts": 45, "dur": 25},
        annotation("perception", 200, 300),  # behind the steps
    ]
    times = read_trace(write_trace(tmp_path, events), 1)
    us = {part: round(1000 * spent) for part, spent in times.parts_ms.items() if spent}
    assert us == {"other": 20, "optimizer": 10 + 20, "perception": 20, "LLM": 5, "communication": 25}
