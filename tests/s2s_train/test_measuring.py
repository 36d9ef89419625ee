"""The measures of a run: in metrics.jsonl, on the screen, and by arithmetic that can be followed."""

import json
import re
import time

import pytest
from lightning.pytorch import Callback

from s2s_model.duplex import DuplexS2SModel
from s2s_parallel.gpus import GPUS, gpu_of_device
from s2s_train.measuring import Measuring, flops_of_batch
from tests.s2s_model.builders import make_codec, make_llm, model_config
from tests.s2s_train.builders import run, write_config


class SlowData(Callback):
    """Makes every batch come late, as slow storage would."""

    def on_train_start(self, trainer, pl_module):
        train = trainer.datamodule._train
        train._batches = late(iter(train._loader))


def late(batches):
    for batch in batches:
        time.sleep(0.2)
        yield batch


def lines(folder):
    return [line for line in map(json.loads, folder.metrics.read_text().splitlines()) if "train_loss" in line]


def test_the_wait_for_data_shows(folder, corpus):
    path = write_config(folder, corpus, trainer={"limit_val_batches": 0})
    quick, slow = run(path, "quick"), run(path, "slow", callbacks=[SlowData()])
    shares = [[line["data_wait_share"] for line in lines(each)] for each in (quick, slow)]
    assert all(0 <= share <= 1 for share in [*shares[0], *shares[1]])
    assert max(shares[1]) > 0.9
    assert sorted(shares[1])[2] > sorted(shares[0])[2]


def test_a_validation_between_log_steps_takes_no_wait_away(folder, corpus):
    trainer = {"max_steps": 4, "limit_train_batches": 8, "val_check_interval": 3, "log_every_n_steps": 4}
    (line,) = lines(run(write_config(folder, corpus, trainer=trainer), "between", callbacks=[SlowData()]))
    # Two waits of 0.2 s before it. The batch behind it is waited for while the clock stands.
    assert line["data_wait_share"] > 0.3


def test_a_cpu_has_no_mfu_and_no_gpu_memory(folder, corpus):
    (line, *_) = lines(run(write_config(folder, corpus), "cpu"))
    assert line["audio_s_per_s"] > 0
    assert not line.keys() & {"mfu", "memory_gib"}


def test_log_lines_and_the_time_that_remains(folder, corpus, capsys):
    path = write_config(folder, corpus, trainer={"enable_progress_bar": True, "max_steps": 4})
    run(path, "shown")
    told = [line for line in capsys.readouterr().out.splitlines() if "train_loss" in line]
    assert re.match(r"step 1/4 \| 0:00:\d\d left \| train_loss .* \| audio_s_per_s .* \| data_wait_share ", told[0])


def test_a_step_of_several_batches_is_told_once(folder, corpus, capsys):
    trainer = {"enable_progress_bar": True, "max_steps": 3, "accumulate_grad_batches": 2, "limit_val_batches": 0}
    run(write_config(folder, corpus, trainer=trainer), "accumulates")
    assert re.findall(r"^step (\d)/3", capsys.readouterr().out, re.MULTILINE) == ["1", "2", "3"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return DuplexS2SModel(model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo")))


def test_operations_are_six_a_weight_and_frame_and_attention(model):
    B, T = 3, 50
    blocks = sum(p.numel() for block in model.llm.model.layers for p in block.parameters() if p.ndim >= 2)
    heads = model.llm.lm_head.weight.numel() + model.audio_head.weight.numel()
    encoder = sum(p.numel() for p in model.perception.parameters() if p.ndim >= 2)
    config = model.llm.config
    attention = 6 * B * T * T * config.hidden_size * config.num_hidden_layers
    expected = 6 * B * T * (blocks + heads + encoder) + attention
    flops = flops_of_batch(model)
    assert flops is not None
    assert flops(B, T).model == pytest.approx(expected)


def test_mfu_is_logged_where_the_gpu_s_peak_is_known(folder, corpus, model):
    from lightning.pytorch import Trainer

    from s2s_data.config import DataConfig, TrainDataConfig
    from s2s_train.data_module import DuplexDataModule

    gpu = GPUS["h100-80gb"]
    data = DataConfig(train_ds=TrainDataConfig(shar_path=corpus, batch_size=2))
    measuring = Measuring(16000, every_n_steps=1, gpu=gpu)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=2, limit_train_batches=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[measuring],
    )  # fmt: skip
    trainer.fit(model, DuplexDataModule(data))
    assert 0 < float(trainer.callback_metrics["mfu"]) < 1e-3, "a CPU's work over a H100's peak"


@pytest.mark.parametrize(
    ("device", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_gpus_are_found_by_the_name_that_cuda_gives(device, gpu):
    found = gpu_of_device(device)
    assert (found.name if found else None) == gpu
