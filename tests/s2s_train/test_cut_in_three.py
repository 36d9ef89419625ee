"""The real model, cut in three by a scheduler, by max_steps and by `kill -9`, is the uncut one to the last bit."""

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer

from s2s_train.composition import build_model, build_scorers
from s2s_train.config import load_config
from s2s_train.fit import RunStopped, fit
from s2s_train.run_folder import RunFolder
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm, model_config, perception
from tests.s2s_train.builders import metrics
from tests.s2s_train.test_resume import final_weights


class SignalIn(Callback):
    """Sends this process a signal in the first batch of a step."""

    def __init__(self, step: int, number: int) -> None:
        self._step, self._number = step, number

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self._step - 1:
            self._step = 0
            os.kill(os.getpid(), self._number)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cut_in_three")
    corpora = [write_shar(folder / name, dialogues(name, 12)) for name in ("first", "second")]
    ears = perception()
    ears["preprocessor"]["dither"] = 1e-5
    ears["encoder"] |= {"dropout": 0.1, "dropout_att": 0.1}
    ears["spec_augment"] = {
        "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
        "freq_masks": 1,
        "freq_width": 4,
        "time_masks": 1,
        "time_width": 4,
    }
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo"), perception=ears),
        "data": {
            "train_ds": {
                "input_cfg": [
                    {"type": "lhotse_shar", "shar_path": corpus, "weight": weight}
                    for corpus, weight in zip(corpora, (0.7, 0.3), strict=True)
                ],
                "batch_duration": 5,
                "use_bucketing": True,
                "num_buckets": 2,
                "bucket_buffer_size": 8,
                "num_workers": 2,
                "shard_seed": "randomized",
            },
            "validation_ds": {"batch_size": 4, "datasets": {"seen": {"shar_path": corpora[0]}}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 9,
            "accumulate_grad_batches": 2,
            "limit_train_batches": 8,
            "val_check_interval": 4,
            "gradient_clip_val": 1.0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "exp_manager": {
            "exp_dir": str(folder / "runs"),
            "checkpoint_callback_params": {"every_n_train_steps": 3},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def _fit(path: Path, overrides: tuple[str, ...], callbacks: tuple[Callback, ...]) -> None:
    torch.set_num_threads(1)
    try:
        fit(load_config(path, overrides), build_model, lambda cfg, run: [*build_scorers(cfg, run), *callbacks])
    except RunStopped as stopped:
        os._exit(stopped.exit_code)


def exit_code_of(path: Path, *overrides: str, callbacks: tuple[Callback, ...] = ()) -> int | None:
    """Train in a process of its own, as a command does."""
    process = get_context("fork").Process(target=_fit, args=(path, overrides, callbacks))
    process.start()
    process.join(240)
    return process.exitcode


def without_clock(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if "per_s" not in name} for line in metrics(run)]


def test_losses_and_weights_of_a_run_cut_in_three_are_those_of_the_uncut_run(config):
    uncut, parts = (RunFolder(config.parent / "runs" / name) for name in ("uncut", "parts"))
    assert exit_code_of(config, "name=uncut") == 0
    assert exit_code_of(config, "name=parts", callbacks=(SignalIn(2, signal.SIGTERM),)) == 143
    assert metrics(parts)[-1]["step"] == 2
    assert exit_code_of(config, "name=parts", "trainer.max_steps=5") == 0
    assert exit_code_of(config, "name=parts", callbacks=(SignalIn(8, signal.SIGKILL),)) == -signal.SIGKILL
    assert metrics(parts)[-1]["step"] == 7, "behind the checkpoint of step 6"
    assert exit_code_of(config, "name=parts") == 0

    assert [line["step"] for line in metrics(uncut) if "train_loss" in line] == list(range(1, 10))
    assert [line["step"] for line in metrics(uncut) if "val_loss" in line] == [2, 4, 6, 8]
    assert len({line["train_loss"] for line in metrics(uncut) if "train_loss" in line}) == 9
    assert without_clock(parts) == without_clock(uncut)
    expected = final_weights(uncut)
    weights = final_weights(parts)
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name], weight), name
