"""A training step and greedy decode of the demo's model, on synthetic dialogues with stored codes."""

import pytest
import torch
from omegaconf import OmegaConf

from s2s_model import DuplexS2SModel
from tests.s2s_model.builders import make_batch

FRAMES = (100,) * 4  # four dialogues of 8 s


@pytest.fixture(scope="module")
def model():
    cfg = OmegaConf.load("apps/train/conf/demo.yaml")
    OmegaConf.resolve(cfg)
    torch.manual_seed(0)
    return DuplexS2SModel(cfg.model)


@pytest.fixture(scope="module")
def batch(model):
    batch = make_batch(FRAMES)
    batch["target_codes"], batch["target_code_lens"] = model.target_codes(batch)
    return batch


def test_training_step(benchmark, model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> float:
        text, audio, num_frames = model.loss_sums(model.prepare_inputs(batch))
        (model.weighted(text, audio) / num_frames).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(text)

    benchmark.extra_info["audio_s"] = sum(FRAMES) * 0.08
    text_loss = benchmark.pedantic(step, rounds=5, warmup_rounds=2)
    assert text_loss > 0


def test_greedy_decode(benchmark, model, batch):
    model.eval()
    with torch.no_grad():
        source, _ = model.encode_source(batch["source_audio"], batch["source_audio_lens"])
    benchmark.extra_info["frames"] = source.shape[1]
    generated = benchmark.pedantic(lambda: model.generate(source), rounds=3, warmup_rounds=1)
    assert generated.text_BT.shape == source.shape[:2]


def test_codec_decode(benchmark, model, batch):
    audio, _ = benchmark.pedantic(
        lambda: model.audio_codec.decode(batch["target_codes"], batch["target_code_lens"]), rounds=3, warmup_rounds=1
    )
    assert audio.shape[0] == len(FRAMES)
