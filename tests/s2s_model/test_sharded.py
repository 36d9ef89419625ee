"""FSDP2 over two gloo processes against one process."""

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from s2s_model import DuplexS2SModel
from s2s_model.adamw import AdamW
from s2s_parallel.config import ParallelConfig
from s2s_parallel.mesh import build_mesh, resolve_mesh
from s2s_parallel.parallelize import parallelize
from tests.s2s_model.builders import make_batch, slice_batch
from tests.s2s_model.processes import run_on_ranks


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def take_steps(model, batches, num_steps=2):
    """Two optimizer steps on a rank's batches, or on those of all ranks one after the other."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(num_steps):
        for batch in batches:
            model.training_step(batch, 0).backward()
        model.on_before_optimizer_step(optimizer)
        optimizer.step()
        optimizer.zero_grad()


def dialogues():
    """Two dialogues of unequal length, a batch each."""
    return [slice_batch(make_batch((24, 16)), b) for b in (0, 1)]


def build(config):
    torch.manual_seed(0)
    model = DuplexS2SModel(config)
    model.log_dict = model.log = lambda *args, **kwargs: None
    return model


def on_rank(rank, model_config, config):
    model = build(model_config)
    parallelize(model, model.parts(), build_mesh(resolve_mesh(2), "cpu"), config)
    take_steps(model, [dialogues()[rank]])
    embedding, head = model.llm.get_input_embeddings().weight, model.llm.get_output_embeddings().weight
    return {
        "tied": embedding is head,
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "dtypes": {p.dtype for p in model.parameters()},
        "state": {name: whole(value) for name, value in model.state_dict().items()},
    }


@pytest.fixture
def tied_config(config, tmp_path):
    from tests.s2s_model.families import make_family

    return config | {"pretrained_llm": make_family("qwen2.5", tmp_path / "tied")}


def test_defect_08_fsdp_keeps_tied_embeddings_and_gathers_perception_by_layers(tied_config, tmp_path):
    alone = build(tied_config)
    take_steps(alone, dialogues())
    for answer in run_on_ranks(on_rank, tmp_path, tied_config, ParallelConfig()):
        assert answer["tied"]
        state = answer["state"]
        assert torch.equal(state["llm.lm_head.weight"], state["llm.model.embed_tokens.weight"])
        assert {"perception.encoder.layers.0", "perception.modality_adapter.layers.0"} < set(answer["units"])
        assert {"llm.model.layers.0", "llm.model.layers.1"} < set(answer["units"])
        for name, value in alone.state_dict().items():
            # float32: gradients are averaged over ranks instead of summed over batches
            torch.testing.assert_close(
                state[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_defect_08_fsdp_computes_in_bf16_and_keeps_float32_weights(tied_config, tmp_path):
    seen = run_on_ranks(on_rank, tmp_path, tied_config, ParallelConfig(param_dtype="bfloat16"))[0]
    assert seen["dtypes"] == {torch.float32}
    before = build(tied_config).state_dict()
    moved = [name for name, value in seen["state"].items() if not torch.equal(value, before[name])]
    assert {"llm.lm_head.weight", "audio_head.weight"} < set(moved)
    assert all(torch.isfinite(value.float()).all() for value in seen["state"].values())


def adam_steps(model, batches):
    """Three clipped steps of our AdamW; of the second the loss isn't finite on the second batch."""
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    for step in range(3):
        for index, batch in batches:
            noise = torch.full_like(batch["source_audio"], torch.nan if (step, index) == (1, 1) else 0.0)
            model.training_step(batch | {"source_audio": batch["source_audio"] + noise}, 0).backward()
        model.on_before_optimizer_step(optimizer)
        model.configure_gradient_clipping(optimizer, 0.5, "norm")
        optimizer.step()
        model.on_train_batch_end(None, batch, 0)
    model.on_train_end()
    assert {type(value) for value in optimizer.state[next(iter(optimizer.state))].values()} == {
        torch.Tensor,
        type(next(iter(optimizer.state)).data),
    }
    return model._num_nonfinite_steps, {name: whole(value) for name, value in model.state_dict().items()}


def adam_on_rank(rank, config):
    model = build(config)
    parallelize(model, model.parts(), build_mesh(resolve_mesh(2), "cpu"), ParallelConfig())
    return adam_steps(model, [(rank, dialogues()[rank])])


def test_adamw_of_shards_skips_and_clips_as_that_of_whole_weights(tied_config, tmp_path):
    """The device judges a step: no process waits for it, and all skip the one that isn't finite on one of them."""
    skipped, expected = adam_steps(build(tied_config), list(enumerate(dialogues())))
    assert skipped == 1
    for skipped, state in run_on_ranks(adam_on_rank, tmp_path, tied_config):
        assert skipped == 1
        for name, value in expected.items():
            # AdamW makes a step of lr of the least gradient
            torch.testing.assert_close(
                state[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
