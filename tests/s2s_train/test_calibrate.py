"""Calibration with a real model against a real limit of memory: a CPU's, set by the system."""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from s2s_data.config import DataConfig, TrainDataConfig
from s2s_data.errors import DataError
from s2s_data.loader import train_dataloader
from s2s_data.synthetic_batch import Bin, Stored, SyntheticBatches, estimate_bins, stored_in
from s2s_train import calibrate_memory
from s2s_train.calibrate import CalibrateArgs, Calibrated, Calibration, Sized, calibrate
from s2s_train.calibrate_cli import add_calibrate
from s2s_train.calibrate_memory import GIB, HostMemory, is_out_of_memory
from s2s_train.calibrate_report import write_config
from s2s_train.calibrate_search import TOLERANCE, largest_that_fits
from s2s_train.calibrate_steps import Trial, Trials
from s2s_train.composition import build_model
from s2s_train.config import load_config
from s2s_train.trainer import build_trainer
from tests.s2s_data.builders import WordTokenizer, dialogue, dialogues, write_shar
from tests.s2s_data.builders import config as data_config
from tests.s2s_model.builders import make_codec, make_llm, model_config
from tests.s2s_parallel.trainers import fit_on_ranks

ROOM_GIB = 0.15
TIGHT_BYTES = GIB // 8
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate")
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo")),
        "data": {"train_ds": {"shar_path": write_shar(folder / "corpus", dialogues("cut", 12)), "batch_duration": 8.0}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_steps": 2},
    }
    path = folder / "tiny.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(sections))
    return path


def taken_gib() -> float:
    memory = HostMemory(1e6)
    memory.reset()
    return memory.peak_bytes() / GIB


def command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_calibrate(parser.add_subparsers())
    args = parser.parse_args(["calibrate", *arguments])
    exit_code: int = args.run_command(args)
    return exit_code


def alone(function: Callable[[Path], Any], config: Path) -> Any:
    """What `function` gives in a process of its own: one that has run other tests has gaps in its memory."""
    code = (
        "import json, pathlib, sys; from tests.s2s_train import test_calibrate as tests;"
        f"print(json.dumps(tests.{function.__name__}(pathlib.Path(sys.argv[1]))))"
    )
    done = subprocess.run([sys.executable, "-c", code, config], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 7, 300])
def test_the_search_finds_any_limit(start):
    rng = random.Random(start)
    for limit in [1, 2, 3, *(rng.randrange(1, 3000) for _ in range(100))]:
        tried: list[int] = []

        def fits(size: int, limit: int = limit, tried: list[int] = tried) -> bool:
            tried.append(size)
            return size <= limit

        found = largest_that_fits(fits, start=start, most=5000)
        assert limit - max(1, TOLERANCE * limit) < found <= limit
        assert len(tried) == len(set(tried)) < 30
        if start == 1:
            assert max(tried) <= 2 * limit, "a size far beyond what fits can take the machine down"


def test_the_search_knows_its_ends():
    assert largest_that_fits(lambda size: False, start=9, most=100) == 0
    assert largest_that_fits(lambda size: True, start=1, most=37) == 37
    assert largest_that_fits(lambda size: True, start=50, most=37) == 37


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tight(monkeypatch):
    """Little more address space than memory, so that what goes beyond the limit is refused."""
    monkeypatch.setattr(calibrate_memory, "HOST_SLACK_BYTES", TIGHT_BYTES)


def test_a_real_refusal_of_memory_is_known_and_passes(tight):
    memory = HostMemory(taken_gib() + 0.2)
    with pytest.raises(RuntimeError) as refused:
        memory.run_limited(lambda: torch.ones(2**30))
    assert is_out_of_memory(refused.value)
    assert torch.ones(2**27).sum() == 2**27, "behind the limit 0.5 GiB can be had again"


def test_a_layer_that_gets_no_memory_for_its_code_leaves_the_next_one_whole(monkeypatch):
    monkeypatch.setattr(calibrate_memory, "HOST_SLACK_BYTES", 0)
    memory = HostMemory(1e6)
    memory.limit_bytes = 0  # nothing beyond what is taken already
    for width in (20, 30, 40):  # oneDNN writes code for each shape
        with pytest.raises(RuntimeError, match="could not create a primitive") as refused:
            memory.run_limited(partial(depthwise, width))
        assert is_out_of_memory(refused.value)
        depthwise(width + 5)


def depthwise(width: int) -> torch.Tensor:
    return torch.nn.functional.conv2d(torch.ones(2, 8, 9, width), torch.ones(8, 1, 3, 3), groups=8)


def test_training_goes_on_behind_steps_that_were_refused(config):
    assert alone(refused_and_taken, config) == [True, False, True, False, True]


class Refusing(HostMemory):
    refuses_cleanly = True


class InTurn(Calibration):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._trials = Trials(trainer, Refusing(taken_gib() + 2 * ROOM_GIB), self.make_batch)
        self.fitted = [self._trials.of(Bin(4.0), size).fits for size in (1, 60, 2, 70, 3)]
        trainer.should_stop = True


def refused_and_taken(config: Path) -> list[bool]:
    calibrate_memory.HOST_SLACK_BYTES = TIGHT_BYTES  # of this process, as `tight` has it
    cfg = load_config(config)
    model: Any = build_model(cfg)
    search = InTurn(lambda device: HostMemory(1e6), 100)
    search.make_batch = SyntheticBatches(cfg.data, model.tokenizer, Stored(True, False), 2, 20).make
    no_data: Any = [{}]
    build_trainer(cfg.trainer, loggers=[], callbacks=[search], root_dir=".").fit(
        model, DataLoader(no_data, batch_size=None)
    )
    return search.fitted


def test_errors_that_wrap_one_are_known_and_others_are_not():
    inside = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    outside = RuntimeError("backend='inductor' raised an error")
    assert not is_out_of_memory(outside)
    outside.__cause__ = inside
    assert is_out_of_memory(outside)
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(ValueError("shapes differ"))


# --- batches without data ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [False, True])
def test_synthetic_batches_are_those_of_data(tmp_path, codes):
    cuts = [dialogue(f"cut{i}", 2.0, codes=codes) for i in range(4)]
    corpus = write_shar(tmp_path / "corpus", cuts, codes=codes)
    cfg = data_config({"shar_path": corpus, "batch_size": 2})
    real = next(iter(train_dataloader(cfg, WordTokenizer())))
    K = real["target_codes"].shape[2] if codes else 8
    stored = stored_in(cfg)
    assert stored == Stored(audio=not codes, codes=codes)
    made = SyntheticBatches(cfg, WordTokenizer(), stored, K, 10).make(2, Bin(2.0))
    assert made.keys() == real.keys()
    for key, value in made.items():
        other = real[key]
        assert type(value) is type(other), key
        if isinstance(value, torch.Tensor):
            assert (value.shape, value.dtype) == (other.shape, other.dtype), key
        else:
            assert len(value) == len(other)


def test_augmentation_makes_batches_longer_and_drops_codes(tmp_path):
    corpus = write_shar(tmp_path / "corpus", [dialogue("cut", codes=True)], codes=True)
    cfg = data_config({"shar_path": corpus, "augment": {"speed": {"factor_min": 0.8, "factor_max": 1.25}}})
    stored = stored_in(cfg)
    assert stored == Stored(audio=True, codes=False)
    batch = SyntheticBatches(cfg, WordTokenizer(), stored, 2, 10).make(1, Bin(2.0))
    assert batch["source_audio_lens"].tolist() == [40000]
    assert "target_codes" not in batch


def test_a_bin_of_two_dimensions_holds_its_tokens():
    batches = SyntheticBatches(DataConfig(), WordTokenizer(), Stored(False, True), 2, 10)
    tokens = batches.make(1, Bin(4.0, 7))["target_tokens"]
    # Their number changes nothing of a batch's shape: each frame holds a token, be it PAD.
    assert int((tokens != WordTokenizer().pad_id).sum()) == 8, "BOS, and as many as the bin has"


def test_bins_of_data_hold_the_longest(tmp_path):
    corpus = write_shar(tmp_path / "corpus", dialogues("cut", 12))
    cfg = data_config({"shar_path": corpus})
    bins, _ = estimate_bins(cfg, WordTokenizer(), 4)
    durations = [each.duration_s for each in bins]
    assert durations == sorted(durations)
    assert 2 <= len(durations) <= 4
    assert durations[-1] == 3.2
    limited = replace(cfg, train_ds=replace(cfg.train_ds, max_duration=2.5))
    assert estimate_bins(limited, WordTokenizer(), 4)[0][-1].duration_s == 2.24
    nothing = replace(cfg, train_ds=replace(cfg.train_ds, max_duration=1.0))
    with pytest.raises(DataError, match="all of 12 dialogues are left out"):
        estimate_bins(nothing, WordTokenizer(), 4)


# --- the whole -----------------------------------------------------------------------------------------------------


def test_sizes_fill_the_memory_given(config):
    limit, (short, short_s, short_peak), (long, long_s, long_peak) = alone(filled, config)
    assert short > long >= 1
    assert max(short_peak, long_peak) <= 1.001 * limit
    assert (short_s, long_s) == (short * 2.0, long * 6.0)
    # The limit was met, not the end of the search: what one fits takes about as much as what the other does. Of so
    # little memory a good part is the allocator's.
    assert 1 / 4 < short_s / long_s < 4


def filled(config: Path) -> list[Any]:
    build_model(load_config(config))  # what libraries take once
    limit_gib = taken_gib() + 2 * ROOM_GIB
    found = calibrate(load_config(config), CalibrateArgs(bins_s=(2.0, 6.0), memory_gib=limit_gib), build_model)
    assert torch.ones(2**28).sum() == 2**28, "the limit is gone"
    return [limit_gib * GIB, *((each.batch_size, each.audio_s, each.trial.peak_bytes) for each in found.sized)]


def test_a_bin_of_which_none_fits_is_named(config):
    args = CalibrateArgs(bins_s=(1.0, 600.0), memory_gib=taken_gib() + ROOM_GIB)
    with pytest.raises(ValueError, match=r"not even one dialogue of 600 s fits .* data.train_ds.max_duration"):
        calibrate(load_config(config), args, build_model)


def test_the_command_writes_a_config_that_trains(config, capsys):
    flags = ["--buckets", "2", "--memory-gib", "1000", "--max-batch-size", "3", "--out"]
    out = config.parent / "sub" / "sized.yaml"
    given = ["seed=7", "model.optimizer.lr=2e-3", "trainer.precision=32-true"]
    assert command(str(config), *given, *flags, str(out)) == 0
    assert "3 (--max-batch-size)" in capsys.readouterr().out
    cfg = load_config(out)
    assert cfg.seed == 7
    assert cfg.model.optimizer["lr"] == 2e-3
    train = cfg.data.train_ds
    assert (train.use_bucketing, train.batch_duration, train.bucket_batch_size) == (True, None, [3, 3])
    assert train.bucket_duration_bins is not None
    assert train.bucket_duration_bins[-1] == 3.2
    assert cfg.model == load_config(config, given).model
    loader = iter(train_dataloader(cfg.data, WordTokenizer()))
    assert max(len(next(loader)["cut_ids"]) for _ in range(6)) == 3


def test_a_file_of_the_user_s_is_not_written_over(config, capsys):
    before = config.read_text()
    with pytest.raises(FileExistsError, match="is there already, and not written by calibrate: give another --out"):
        command(str(config), "--bins", "1", "--memory-gib", "1000", "--out", str(config))
    assert config.read_text() == before


def test_the_written_config_is_the_one_that_was_calibrated(config):
    base = config.with_name("odd #1: ü.yaml")
    base.write_text(config.read_text())
    given = [
        "model.optimizer.lr=0.5",
        "model.optimizer._target_=torch.optim.Adam",
        "exp_manager.log_step_timing=true",
        "model.freeze_params=[a]",
    ]
    cfg = load_config(base, given)
    sized = Sized(Bin(2.0), 4, Trial(True), 8.0)
    out = config.with_name("written.yaml")
    for _ in range(2):  # its own older file is replaced
        write_config(out, base, cfg, given, Calibrated([sized], GIB, 9, []))
        written = load_config(out)
        assert written.model == cfg.model
        assert written.data.train_ds.bucket_batch_size == [4]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "on a CPU .* give --memory-gib N"),
        ({"memory_gib": 0.01}, r"--memory-gib is 0.01, but the model and its libraries take [\d.]+ GiB already"),
        ({"bins_s": (5.0, 2.0)}, "--bins is 5.0,2.0: give ascending"),
        ({"bins_s": (5.0,), "num_buckets": 3}, "--bins and --buckets"),
        ({"memory_share": 1.5}, "--memory-share is 1.5"),
    ],
)
def test_refusals_say_what_to_do(config, arguments, told):
    with pytest.raises(ValueError, match=told):
        calibrate(load_config(config), CalibrateArgs(**arguments), build_model)


def test_without_data_bins_and_what_is_stored_have_to_be_given(config):
    cfg = load_config(config)
    cfg.data.train_ds = TrainDataConfig()
    with pytest.raises(ValueError, match="give --bins"):
        calibrate(cfg, CalibrateArgs(memory_gib=1000), build_model)
    with pytest.raises(ValueError, match="--stored codes or audio"):
        calibrate(cfg, CalibrateArgs(memory_gib=1000, bins_s=(1.0,)), build_model)


def test_ranks_of_a_mesh_agree(config, tmp_path):
    shown = fit_on_ranks(on_a_mesh, tmp_path, config, taken_gib() + ROOM_GIB)
    assert shown[0] == shown[1]
    (size, peak, audio_s), limit = shown[0]
    assert 1 <= size < 4096
    assert peak <= 1.001 * limit
    assert audio_s == 2 * 3.0 * size, "each of two data parallel ranks has a batch"


def on_a_mesh(config: Path, limit_gib: float) -> Any:
    strategy = "trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy"
    cfg = load_config(config, [strategy, "trainer.devices=2"])
    found = calibrate(cfg, CalibrateArgs(bins_s=(3.0,), memory_gib=limit_gib), build_model)
    (each,) = found.sized
    return (each.batch_size, each.trial.peak_bytes, each.audio_s), found.limit_bytes


def test_ranks_with_unlike_room_keep_to_the_smallest(config, tmp_path):
    limits = [taken_gib() + ROOM_GIB, taken_gib() + ROOM_GIB / 3]
    shown = fit_on_ranks(on_a_mesh_with_own_room, tmp_path, config, limits)
    assert shown[0] == shown[1]
    assert shown[0][1] == int(limits[1] * GIB)


def on_a_mesh_with_own_room(config: Path, limits_gib: list[float]) -> Any:
    return on_a_mesh(config, limits_gib[int(os.environ["RANK"])])
