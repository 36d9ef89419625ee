"""Replayed CUDA graphs against the same steps without: they need a GPU, so CI skips this file.

    S2S_TEST_ON_GPU=1 python -m pytest tests/s2s_model/test_graphed_step_on_gpu.py tests/s2s_model/test_adamw.py

Tolerance: both run the same kernels in float32 without TF32; sums by atomics leave 1e-4 of the largest gradient. In
bf16 they leave a few of its last places, 2e-2.
"""

import copy

import pytest
import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from s2s_model import DuplexS2SModel
from s2s_model.dtypes import default_dtype
from s2s_parallel.config import ParallelConfig
from s2s_parallel.parallelize import parallelize
from tests.s2s_model.builders import conformer, make_batch, perception

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
A, B, C, MORE = (30, 17), (60, 55), (7,), (40, 12, 70)  # frames of dialogues
LONG = (700,)  # 56 s


@pytest.fixture(autouse=True)
def exact():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def pair(config, parallel=None, **keys):
    """A graphed model, and its copy that pads in the same way and captures nothing."""
    torch.manual_seed(0)
    model = DuplexS2SModel(config | keys).cuda().train()
    plain = copy.deepcopy(model)
    for each in (model, plain):
        each.graph()
        if parallel is not None:
            parallelize(each, each.parts(), None, parallel)
    plain._graphs._max_sizes = 0
    return model, plain


def batch_of(model, frames, seed=0):
    batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in make_batch(frames, seed=seed).items()}
    codes, lens = model.target_codes(batch)
    kept = {key: value for key, value in batch.items() if not key.startswith("target_audio")}
    return kept | {"target_codes": codes, "target_code_lens": lens}


def backward(model, batch):
    sums = model(batch)
    loss = sums.objective(model.cfg)
    loss.backward()
    return loss.detach()


def assert_same_gradients(model, plain, tolerance=1e-4):
    own, wanted = (
        {name: p.grad for name, p in each.named_parameters() if p.grad is not None} for each in (model, plain)
    )
    assert own.keys() == wanted.keys()
    assert own
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((own[name] - gradient).abs().max()) <= tolerance * largest, name


def check(model, plain, *batches, tolerance=1e-4):
    """Each in turn, its gradients dropped after it."""
    for batch in batches:
        torch.testing.assert_close(backward(model, batch), backward(plain, batch), rtol=tolerance, atol=0)
        assert_same_gradients(model, plain, tolerance)
        for each in (model, plain):
            each.zero_grad(set_to_none=True)


@pytest.mark.parametrize("keys", [{}, {"predict_user_text": True}])
def test_sizes_in_turn(config, keys):
    model, plain = pair(config, **keys)
    batches = [batch_of(model, frames, seed) for seed in range(4) for frames in (A, B, C)]
    check(model, plain, *batches)
    assert model._graphs.num_captured == 3
    assert plain._graphs.num_captured == 0


def test_gradients_of_batches_of_a_step_add_up(config):
    model, plain = pair(config)
    first, second = batch_of(model, A), batch_of(model, B)
    for _ in range(4):
        for batch in (first, second, first):
            backward(model, batch)
            backward(plain, batch)
        assert_same_gradients(model, plain)
        model.zero_grad(set_to_none=True)
        plain.zero_grad(set_to_none=True)


def test_positions_that_are_made_anew_for_longer_audio(config):
    model, plain = pair(config, perception=perception() | {"encoder": conformer(16, 8) | {"pos_emb_max_len": 40}})
    short, long = batch_of(model, A), batch_of(model, LONG)
    check(model, plain, short, short, short, long, short, short, short, long, long, short)


class NoWaits(Callback):
    """From the 9th batch on torch refuses what makes the host wait for the device."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 8:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_end(self, trainer, pl_module):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_host_waits_for_no_step_of_lightnings(config, tmp_path, precision):
    optimizer = {"_target_": "s2s_model.adamw.AdamW", "lr": 1e-3}
    model = DuplexS2SModel(config | {"optimizer": optimizer}, parallel=ParallelConfig(cuda_graphs=True))
    batches = [batch_of(model.cuda(), frames) for frames in (A, B)]
    trainer = Trainer(
        max_steps=16, accelerator="gpu", devices=1, precision=precision, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, gradient_clip_val=1.0,
        callbacks=[NoWaits()],
    )  # fmt: skip
    try:
        trainer.fit(model, DataLoader(batches * 8, batch_size=None))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.global_step == 16
    assert model._graphs.num_captured == 2


@pytest.mark.parametrize("frozen", [r"^llm\..+embed_tokens.+$", r"^perception\..+$", r"^llm\..+$"])
def test_frozen_parts(config, frozen):
    model, plain = pair(config, freeze_params=[frozen])
    batches = [batch_of(model, frames) for frames in (A, B, A, B, A, B)]
    check(model, plain, *batches)
    backward(model, batches[0])
    backward(plain, batches[0])
    backward(model, batches[1])
    backward(plain, batches[1])
    assert_same_gradients(model, plain)


def test_parts_that_are_frozen_half_way(config):
    model, plain = pair(config)
    batch = batch_of(model, A)
    check(model, plain, batch, batch, batch)
    for requires_grad in (False, True):
        for each in (model, plain):
            each.perception.requires_grad_(requires_grad)
        check(model, plain, batch, batch, batch)


def test_weights_that_change_in_place_and_a_validation_between(config):
    model, plain = pair(config)
    batch = batch_of(model, A)
    check(model, plain, batch, batch, batch)
    changed = {name: value * 1.01 for name, value in plain.state_dict().items()}
    for each in (model, plain):
        each.load_state_dict(changed)
        each.eval()
        with torch.no_grad():
            each(batch)
        each.train()
    check(model, plain, batch, batch, batch)


def assert_replays_draw_dropout(model, plain):
    batch = batch_of(model, B)
    own = torch.stack([backward(model, batch) for _ in range(40)][2:])
    wanted = torch.stack([backward(plain, batch) for _ in range(38)])
    assert len(own.unique()) == len(own)
    assert (own.mean() - wanted.mean()).abs() <= 0.02 * wanted.mean()


def test_each_replay_draws_its_own_dropout(config):
    dropout = {"dropout": 0.2, "dropout_att": 0.2}
    parts = perception() | {"encoder": conformer(16, 8) | dropout, "modality_adapter": conformer(32, 1) | dropout}
    model, plain = pair(config, perception=parts)
    assert_replays_draw_dropout(model, plain)


def test_each_replay_draws_its_own_dropout_in_the_llm(config):
    model, plain = pair(config)
    for each in (model, plain):
        for layer in each.llm.model.layers:
            layer.self_attn.attention_dropout = 0.2
    assert_replays_draw_dropout(model, plain)


@pytest.mark.parametrize("budget", [1.0, 0.2])
def test_compiled_layers(config, budget):
    parallel = ParallelConfig(
        compile=True, cuda_graphs=True, activation_memory_budget=budget, encoder_memory_budget=budget
    )
    model, plain = pair(config, parallel)
    check(model, plain, *(batch_of(model, frames, seed) for seed in range(3) for frames in (A, B, C, MORE)))
    assert model._graphs.num_captured == 4


@pytest.mark.parametrize("compiled", [False, True])
def test_bf16(config, compiled):
    model, plain = pair(config, ParallelConfig(compile=compiled, cuda_graphs=compiled))
    batches = [batch_of(model, frames) for frames in (A, B, A, B, A)]
    for each in (model, plain):
        each.bfloat16()
    with default_dtype(torch.bfloat16):
        check(model, plain, *batches, tolerance=2e-2)
    assert model._graphs.num_captured == 2


@pytest.mark.parametrize("mode", ["full", 2, "selective"])
def test_what_is_computed_again_in_backward(config, mode):
    model, plain = pair(
        config,
        ParallelConfig(activation_checkpointing=mode),
        perception=perception() | {"activation_checkpointing": True},
    )
    batches = [batch_of(model, frames) for frames in (A, B, A, B, A, B)]
    check(model, plain, *batches)
    assert model._graphs.num_captured == 2


def test_backwards_in_another_order_are_refused(config):
    model, _ = pair(config)
    first, second = batch_of(model, A), batch_of(model, B)
    for batch in (first, second, first, second):
        backward(model, batch)
    waiting = model(first).objective(model.cfg)
    model(second)
    with pytest.raises(RuntimeError, match="call backward once, before the next forward"):
        waiting.backward()
    once = model(first).objective(model.cfg)
    once.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once"):
        once.backward()


def test_sizes_past_the_most_run_as_they_are(config, caplog):
    model, plain = pair(config)
    model._graphs._max_sizes = 1
    check(model, plain, *(batch_of(model, frames) for frames in (A, A, B, B, A, B, C, C, C)))
    assert model._graphs.num_captured == 1
    assert caplog.text.count("in more than 1 sizes") == 1


@pytest.mark.parametrize("target", ["torch.optim.AdamW", "s2s_model.adamw.AdamW"])
def test_a_step_that_is_not_finite_is_skipped_by_the_device(config, target):
    optimizer = {"_target_": target, "lr": 1e-3, "fused": True}
    model, plain = pair(config, optimizer=optimizer)
    good, bad = batch_of(model, A), batch_of(model, A, seed=1)
    bad["source_audio"][0, 5000] = torch.nan
    for each in (model, plain):
        each.log = each.log_dict = lambda *args, **kwargs: None
        own = each.configure_optimizers()["optimizer"]
        for batch in (good, good, good, bad, good):
            each.on_train_batch_start(batch, 0)
            each.training_step(batch, 0).backward()
            each.on_before_optimizer_step(own)
            each.configure_gradient_clipping(own, 1.0, "norm")
            own.step()
            each.on_train_batch_end(None, batch, 0)
        each.on_train_end()
        assert each._num_nonfinite_steps == 1
    for (name, own), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert bool(own.isfinite().all()), name
        assert float((own - wanted).abs().max()) <= 5e-4, name
