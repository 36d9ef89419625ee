"""The plan beside what a real model takes: its parameters, optimizer, saved tensors, operations."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from s2s_model.network import as_model_config
from s2s_model.perception import build_perception
from s2s_parallel.config import ParallelConfig
from s2s_parallel.estimate import Layout, activation_bytes, estimate_memory
from s2s_parallel.gpus import GIB
from s2s_parallel.mesh import MeshSizes
from s2s_parallel.speed import flops_of_step
from s2s_train.cli import main
from s2s_train.config import load_config
from s2s_train.plan import PlanArgs, batch_shape, make_plan
from tests.s2s_model.builders import conformer, make_batch, make_codec, make_llm, model_config, perception
from tests.s2s_model.perception_builders import make_w2v_bert, make_whisper

B, FRAMES = 3, 50
BATCH = ["--batch-size", str(B), "--duration", str(FRAMES * 0.08)]
LARGE = {"num_hidden_layers": 64, "hidden_size": 5120, "intermediate_size": 25600, "vocab_size": 151936}


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return make_llm(folder / "llm"), make_codec(folder / "codec.nemo")


@pytest.fixture(scope="session")
def model_section(parts):
    """A tiny model that computes attention in full, so that a CPU saves what is counted."""
    section = model_config(*parts, attn_implementation="eager", freeze_params=[r"^llm\.model\.layers\.0\..+"])
    for part in ("encoder", "modality_adapter"):
        section["perception"][part]["use_pytorch_sdpa"] = False
    return section


@pytest.fixture
def config(tmp_path, model_section):
    return write(tmp_path, model_section)


def write(folder: Path, model: dict[str, Any], **trainer) -> Path:
    path = folder / "run.yaml"
    trainer = {"devices": 1, "max_steps": 1, **trainer}
    train_ds = {"shar_path": "nowhere", "batch_size": B, "max_duration": FRAMES * 0.08}
    path.write_text(yaml.safe_dump({"model": model, "data": {"train_ds": train_ds}, "trainer": trainer}))
    return path


def llm_config(folder: Path, **shape) -> str:
    from transformers import LlamaConfig

    shape = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, **shape}
    LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(folder)
    return str(folder)


class Saved:
    """Bytes of distinct storages that autograd saves in a real forward."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.kept: dict[int, torch.Tensor] = {p.untyped_storage().data_ptr(): p for p in model.parameters()}
        self.total = 0

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.kept:
            self.kept[storage.data_ptr()] = tensor  # kept alive, so that no address is used again
            self.total += storage.nbytes()
        return tensor


@pytest.fixture(scope="session")
def trained(model_section):
    """A real model after a real step, with what that saved, its optimizer and its operations."""
    from s2s_model import DuplexS2SModel

    torch.manual_seed(0)
    model = DuplexS2SModel(model_section).train()
    batch = make_batch((FRAMES,) * B)
    encoder, llm = Saved(model), Saved(model)
    with torch.autograd.graph.saved_tensors_hooks(encoder, lambda saved: saved):
        inputs = model.prepare_inputs(batch)
    with torch.autograd.graph.saved_tensors_hooks(llm, lambda saved: saved):
        hidden = model.hidden_states(inputs)
    leaf = inputs.source_BTH.detach().requires_grad_(True)
    counter = FlopCounterMode(model.llm, display=False)
    with counter:
        model.llm.model(inputs_embeds=leaf, use_cache=False).last_hidden_state.sum().backward()
    del hidden
    model.zero_grad(set_to_none=True)
    optimizer = model.configure_optimizers()["optimizer"]
    sums = model(batch)
    sums.objective(model.cfg).backward()
    optimizer.step()
    return model, optimizer, encoder.total, llm.total, counter.get_total_flops()


@pytest.fixture(scope="session")
def planned(model_section, tmp_path_factory):
    return make_plan(load_config(write(tmp_path_factory.mktemp("planned"), model_section)))


def test_parameters_are_those_of_the_model(planned, trained):
    model, *_ = trained
    by_name = {part.name: part for part in planned.sizes.parts}
    codec = by_name.pop("codec")
    assert codec.total == sum(p.numel() for p in model.audio_codec._model.parameters())
    for flag, kind in ((True, "trained"), (False, "frozen")):
        counted = sum(getattr(part, kind).total for part in by_name.values())
        assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad is flag)
    assert by_name["text head"].total == model.llm.lm_head.weight.numel()
    assert by_name["audio head"].total == sum(p.numel() for p in model.audio_head.parameters())
    assert by_name["adapter"].total == sum(
        p.numel() for m in (model.perception.modality_adapter, model.perception.proj) for p in m.parameters()
    )


def test_bytes_are_those_of_weights_gradients_and_optimizer(planned, trained):
    model, optimizer, *_ = trained
    memory = planned.configured.memory
    assert sum(memory.weights.values()) == sum(
        p.nbytes for m in (model, model.audio_codec._model) for p in m.parameters()
    )
    assert sum(memory.gradients.values()) == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    states = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    assert sum(memory.optimizer.values()) == sum(state.nbytes for state in states)


def test_activations_are_what_autograd_saves(planned, trained):
    *_, encoder, llm, _ = trained
    activations = planned.sizes.activations
    assert activations.encoder == pytest.approx(encoder, rel=0.02)
    blocks = sum(block.residual + block.gathered + block.inside for block in activations.blocks)
    assert blocks + activations.other == pytest.approx(llm, rel=0.02)


def test_heads_and_losses_are_counted_at_their_largest_moment(planned, trained):
    model, *_ = trained
    N = B * (FRAMES - 1)
    V, KC = model.llm.lm_head.out_features, model.audio_head.out_features
    # Backward of the audio loss: of both losses the saved log-softmax, of this one two gradients beside it.
    by_hand = 4 * N * (V + 3 * KC)
    assert planned.sizes.activations.heads == pytest.approx(by_hand, rel=0.15)
    assert planned.sizes.activations.hidden == 4 * N * 32


def test_flops_are_those_of_the_counter(planned, trained):
    *_, counted = trained
    work = planned.sizes.work
    flops = flops_of_step(work)
    of_heads = 6 * work.tokens * work.head_params
    # The counter sees whole products of attention, of which a causal kernel computes half; and positions' products.
    other_half = 3 * 2 * work.tokens * work.num_frames * work.attention_width * work.num_blocks
    assert flops.llm - of_heads + other_half == pytest.approx(counted, rel=0.01)


def test_fused_attention_keeps_its_inputs_output_and_a_number_a_query(config, planned):
    fused = make_plan(load_config(config, ["model.attn_implementation=sdpa"])).sizes.activations.blocks[1]
    eager = planned.sizes.activations.blocks[1]
    frames, query, key, ffn = B * (FRAMES - 1), 32, 16, 64
    # Query, key, value, output, a number for each of 4 heads; gate, its SiLU, up and their product.
    assert fused.inside == 4 * frames * (2 * query + 2 * key + 4 + 4 * ffn)
    assert (fused.residual, fused.gathered) == (eager.residual, eager.gathered)
    probabilities = 4 * B * 4 * (FRAMES - 1) ** 2
    assert eager.inside - fused.inside > 0.8 * probabilities


@pytest.mark.parametrize("make", [make_whisper, make_w2v_bert])
def test_hugging_face_encoders(make, model_section, tmp_path):
    """Their features are computed in numpy."""
    adapter = {"_target_": "s2s_model.perception.adapters.StackingAdapter"}
    section = {**model_section, "pretrained_asr": make(tmp_path / "asr"), "perception": {"modality_adapter": adapter}}
    plan = make_plan(load_config(write(tmp_path, section)))
    real = build_perception(as_model_config({**section, "pretrained_weights": True}), 32, 0.08).train()
    saved = Saved(real)
    samples = round(FRAMES * 0.08 * 16000)
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda kept: kept):
        real(torch.randn(B, samples), torch.full((B,), samples))
    # A CPU's fused attention writes head by head, and the next matrix wants a copy; a GPU's doesn't.
    assert 0.92 < plan.sizes.activations.encoder / saved.total < 1.03
    counted = sum(part.total for part in plan.sizes.parts if part.name in ("perception", "adapter"))
    assert counted == sum(p.numel() for p in real.parameters())


def test_adapters_and_the_users_text_are_counted(model_section, tmp_path):
    from s2s_model import DuplexS2SModel

    section = {
        **model_section,
        "freeze_params": [r"^audio_codec\..+$", "^perception"],
        "lora": {"r": 2, "lora_alpha": 4},
        "predict_user_text": True,
    }
    plan = make_plan(load_config(write(tmp_path, section)))
    real = DuplexS2SModel(section)
    parts = [part for part in plan.sizes.parts if part.name != "codec"]
    assert sum(p.trained.total for p in parts) == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert sum(p.frozen.total for p in parts) == sum(p.numel() for p in real.parameters() if not p.requires_grad)
    assert plan.sizes.activations.encoder == 0, "nothing of it is trained"


def test_tied_embeddings_count_once(model_section, tmp_path):
    shape = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "vocab_size": 100, "head_dim": 8}
    llm = llm_config(tmp_path / "llm", **shape, num_attention_heads=8, tie_word_embeddings=True)
    plan = make_plan(load_config(write(tmp_path, {**model_section, "pretrained_llm": llm, "freeze_params": []})))
    assert {p.name: p.total for p in plan.sizes.parts}["text embeddings and head, tied"] == 100 * 64


def test_bf16_halves_the_weights(config, planned):
    halved = make_plan(load_config(config, ["trainer.precision=bf16-true"]))
    of_codec = planned.configured.memory.weights["codec"]
    full, half = (sum(plan.configured.memory.weights.values()) - of_codec for plan in (planned, halved))
    assert full == 2 * half
    assert halved.configured.memory.weights["codec"] == of_codec, "it stays in float32"


def test_plain_report_adds_up(config, capsys):
    assert main(["plan", str(config), *BATCH]) == 0
    text = capsys.readouterr().out
    for words in ("text embeddings", "perception", "codec", "max_memory_allocated", "fits", "llm_efficiency"):
        assert words in text
    assert f"batch: {B} dialogues of 4 s" in text
    assert "--batch-size" in text


def test_refused_meshes_are_named_with_the_reason(config, capsys):
    strategy = ["trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy", "trainer.devices=4"]
    assert main(["plan", str(config), *strategy]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tensor_parallel_size (4) must divide num_key_value_heads (2): use 1 or 2" in text
    assert main(["plan", str(config), *strategy, "trainer.strategy.tensor_parallel_size=3"]) == 2
    assert "tensor_parallel_size (3)" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["Llama", "StableLm"])
def test_frames_are_shared_by_families_known_to_share_them(config, tmp_path, capsys, family):
    import transformers

    shape = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "architectures": [f"{family}ForCausalLM"]}
    getattr(transformers, f"{family}Config")(**shape, **heads).save_pretrained(tmp_path / "llm")
    mesh = ["trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy", "trainer.devices=2"]
    keys = [f"model.pretrained_llm={tmp_path / 'llm'}", *mesh, "trainer.strategy.context_parallel_size=2"]
    assert main(["plan", str(config), *keys]) == 0
    text = " ".join(capsys.readouterr().out.split())
    refused = "context_parallel_size: stablelm LLMs aren't known to share frames" in text
    assert refused == (family == "StableLm")
    assert ("No mesh fits" in text) == refused


def test_what_is_missing_is_said(config, capsys):
    assert main(["plan", str(config), "model.pretrained_llm=/nowhere/llm"]) == 2
    assert "model.pretrained_llm: no folder /nowhere/llm" in capsys.readouterr().err
    assert main(["plan", str(config), "model.pretrained_audio_codec=/nowhere/codec.nemo"]) == 2
    assert "no file /nowhere/codec.nemo" in capsys.readouterr().err
    assert main(["plan", str(config), "model.pretrained_audio_codec=nobody/codec"]) == 0
    assert "codec: not counted (not found here: nobody/codec); 8 codebooks" in capsys.readouterr().out
    assert main(["plan", str(config), "--gpu", "h100"]) == 2
    assert "h100-80gb" in capsys.readouterr().err
    assert main(["plan", str(config), "data.train_ds.max_duration=null"]) == 2
    assert "give --duration SECONDS" in capsys.readouterr().err
    assert main(["plan", str(config), "trainer.devices=-1"]) == 2
    assert "give --world-size" in capsys.readouterr().err


def test_the_batch_is_that_of_the_data(config):
    def shape(*overrides: str, batch_size: int | None = None, duration_s: float | None = None):
        keys = [f"data.train_ds.{key}" for key in overrides]
        return batch_shape(load_config(config, keys).data.train_ds, batch_size, duration_s)[:2]

    assert shape() == (B, 4.0)
    assert shape(batch_size=5, duration_s=7.0) == (5, 7.0)
    assert shape("batch_size=null", "batch_duration=100", "max_duration=20") == (5, 20.0)
    assert shape("batch_size=null", "batch_duration=100", "max_duration=20", "quadratic_duration=20") == (2, 20.0)
    bins = ["max_duration=null", "batch_size=null", "use_bucketing=true", "bucket_duration_bins=[5,10,40]"]
    assert shape(*bins, "batch_duration=100") == (2, 40.0)
    assert shape(*bins, "bucket_batch_size=[30,20,4]") == (20, 10.0)


@pytest.fixture(scope="session")
def large(tmp_path_factory, model_section):
    """A model of 32 B on 8 GPUs, 4 dialogues of 40 s each."""
    folder = tmp_path_factory.mktemp("large")
    section = {**model_section, "pretrained_llm": llm_config(folder / "llm", **LARGE), "attn_implementation": None}
    section["optimizer"] = {**section["optimizer"], "fused": True}
    return write(folder, section, devices=8, strategy={"_target_": "s2s_parallel.strategy.MeshStrategy"})


@pytest.mark.parametrize(("precision", "bytes_a_weight"), [("bf16-true", 8), ("32-true", 16)])
def test_a_model_of_30_billion_fits_8_gpus_of_80_gb(large, precision, bytes_a_weight):
    keys = ["parallel.activation_checkpointing=full", "parallel.param_dtype=bfloat16"]
    cfg = load_config(large, [f"trainer.precision={precision}", *keys])
    plan = make_plan(cfg, PlanArgs(batch_size=4, duration_s=40.0, codec="8x4032"))
    memory = plan.configured.memory
    total = sum(part.trained.total + part.frozen.total for part in plan.sizes.parts)
    assert total == pytest.approx(33.2e9, rel=0.01)
    assert memory.kept == pytest.approx(total * bytes_a_weight / 8, rel=0.03), "layer 0 is frozen"
    assert memory.activations["LLM blocks"] == 64 * 4 * 499 * 5120 * 2, "each block's input, [B, T, H] in bf16"
    forward = sum(memory.activations.values()) + memory.gathered - sum(memory.gradients.values())
    assert memory.total == memory.kept + max(forward, 0) + memory.fixed + memory.outside
    assert plan.configured.fits
    assert plan.recommended is not None
    assert plan.recommended.fits
    none = activation_bytes(plan.sizes.activations, ParallelConfig(), MeshSizes(1))
    assert sum(none.values()) > 20 * GIB, "without recomputation it takes more than is left"


def test_validation_of_sharded_weights_counts(large):
    validates = json.dumps({"a": {"shar_path": "nowhere", "batch_size": 1}})
    keys = ["trainer.precision=bf16-true", "parallel.activation_checkpointing=full"]
    cfg = load_config(large, [f"data.validation_ds.datasets={validates}", *keys])
    plan = make_plan(cfg, PlanArgs(batch_size=4, duration_s=40.0, codec="8x4032"))
    gathered = 2 * sum(part.total for part in plan.sizes.parts if part.sharding != "whole")
    assert plan.configured.memory.validating == gathered
    assert not plan.configured.fits
    assert plan.recommended is not None
    assert plan.recommended.layout.sizes.tensor_parallel_size > 1


def test_a_measured_run(tmp_path):
    """On one H100 21.01 GiB were allocated at most (benchmarks/gpu_parallel.py; figures in docs/parallel.md)."""
    llm = llm_config(
        tmp_path / "llm", num_hidden_layers=22, hidden_size=2048, intermediate_size=5632, vocab_size=32000,
        num_attention_heads=32, num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    wide = {"d_model": 512, "n_heads": 8, "subsampling_conv_channels": 256, "conv_kernel_size": 9, "xscaling": True}
    section = perception()
    section["preprocessor"]["features"] = 80
    section["encoder"] = conformer(80, 8) | wide | {"n_layers": 17, "att_context_size": [70, 0]}
    section["modality_adapter"] = conformer(512, 1) | wide | {"n_layers": 2, "att_context_size": [70, 1]}
    path = write(tmp_path, model_config(llm, "stored-codes", perception=section), precision="bf16-true")
    plan = make_plan(load_config(path), PlanArgs(batch_size=16, duration_s=20.0, codec="8x4032"))
    assert plan.configured.memory.allocated / GIB == pytest.approx(21.01, rel=0.03)
    again = estimate_memory(plan.sizes.parts, plan.sizes.activations, plan.training, Layout(MeshSizes(1), False))
    assert again == plan.configured.memory
