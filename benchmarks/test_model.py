"""A training step, greedy decode and a live session of the demo's model, on synthetic dialogues."""

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
        sums = model(batch)
        (sums.objective(model.cfg) / sums.num_frames).backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(sums.text)

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


def test_live_session(benchmark, model, batch):
    """One second of one live conversation: encoder, LLM and codec, frame by frame."""
    model.eval()
    session = model.open_session(max_duration_s=60)
    second, frame = batch["source_audio"][:1, :16000], 1280
    benchmark.extra_info["frames"] = 12.5

    def talk() -> int:
        return sum(session.push(piece).tokens_BN.shape[1] for piece in second.split(frame, dim=1))

    assert benchmark.pedantic(talk, rounds=5, warmup_rounds=1) >= 12


def test_codec_decode(benchmark, model, batch):
    audio, _ = benchmark.pedantic(
        lambda: model.audio_codec.decode(batch["target_codes"], batch["target_code_lens"]), rounds=3, warmup_rounds=1
    )
    assert audio.shape[0] == len(FRAMES)
