"""The whole model on two and four processes against one: every family, and every way of laying it out."""

import pytest
import torch

from s2s_parallel import registry
from s2s_parallel.config import ParallelConfig
from s2s_parallel.mesh import MeshSizes, build_mesh
from s2s_parallel.parallelize import parallelize
from s2s_parallel.registry import FamilySpec, Style, register_family
from tests.s2s_model import families
from tests.s2s_model.builders import make_codec
from tests.s2s_model.families import make_family
from tests.s2s_model.parallel_checks import FAMILIES, LAYOUTS, Layout, build, compare
from tests.s2s_model.processes import run_on_ranks

LORA = {
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"],
}


@pytest.fixture(scope="module")
def codecs(tmp_path_factory):
    """Codecs by their number of codebooks."""
    folder = tmp_path_factory.mktemp("codecs")
    return {number: make_codec(folder / f"{number}.nemo", num_codebooks=number) for number in (2, 3)}


@pytest.fixture
def of_family(codecs, tmp_path):
    """Builds the model around a small LLM."""

    def make(family, num_codebooks=2, **keys):
        config = family if not isinstance(family, str) else FAMILIES[family]()
        return build(make_family("", tmp_path / "llm", config), codecs[num_codebooks], **keys)

    return make


@pytest.mark.parametrize("names", [("TP 2", "TP+SP 2", "FSDP2 2"), ("TP+SP+FSDP2 2×2",)], ids=["two", "four"])
@pytest.mark.parametrize("family", FAMILIES)
def test_processes_together_equal_one(family, names, of_family, tmp_path):
    compare([LAYOUTS[name] for name in names], of_family(family), tmp_path)


TP2, DP2, BOTH = MeshSizes(1, 2), MeshSizes(2), MeshSizes(2, 2)


@pytest.mark.parametrize(
    ("sizes", "options", "keys"),
    [
        pytest.param(BOTH, {"activation_checkpointing": "full"}, {}, id="recomputed"),
        pytest.param(DP2, {"activation_checkpointing": 2}, {}, id="every second layer recomputed"),
        pytest.param(BOTH, {"activation_checkpointing": "selective"}, {}, id="cheap operations recomputed"),
        pytest.param(DP2, {"prefetch_blocks": 2, "reshard_after_forward": False}, {}, id="prefetched and kept"),
        pytest.param(DP2, {"cpu_offload": True}, {}, id="offloaded"),
        pytest.param(MeshSizes(4, 1, replicate_size=2), {}, {}, id="two copies of two shards"),
        pytest.param(MeshSizes(2, 2, replicate_size=2), {}, {}, id="two copies of two shares"),
        pytest.param(BOTH, {}, {"predict_user_text": True}, id="the user's text"),
        pytest.param(BOTH, {}, {"lora": LORA}, id="LoRA"),
        pytest.param(TP2, {"sequence_parallel": False}, {"lora": LORA}, id="LoRA without sequence parallel"),
        pytest.param(TP2, {"compile": True}, {}, id="compiled"),
    ],
)
def test_each_way_of_laying_it_out_equals_one_process(sizes, options, keys, of_family, tmp_path):
    compare([Layout(sizes, ParallelConfig(**options))], of_family("llama-3", **keys), tmp_path)


@pytest.mark.parametrize("sizes", [MeshSizes(1, 4), MeshSizes(2, 2)])
def test_vocabularies_need_not_divide(sizes, of_family, tmp_path):
    """Of 67 tokens and 3 × 23 codes, a process has 17 or 34, and 18 or 35: some end within a codebook."""
    config = families.of_llama_shape(
        "LlamaConfig", num_key_value_heads=4, vocab_size=67, tie_word_embeddings=True, pad_token_id=66
    )
    compare([Layout(sizes)], of_family(config, num_codebooks=3), tmp_path)


def test_a_wrong_plan_is_seen(of_family, tmp_path, monkeypatch):
    """The check can fail: a norm on each process' own heads, said to see all of them, has wrong gradients."""
    monkeypatch.setattr(registry, "_FAMILIES", {})
    wrong = {f"layers.*.self_attn.{name}_norm": Style.REPLICATE.value for name in "qk"}
    register_family("qwen3", FamilySpec(overrides=wrong))
    with pytest.raises(
        AssertionError, match=r"grad llm.model.layers.\d.self_attn.[qk]_norm.weight differs by .*e-0[12]"
    ):
        compare([LAYOUTS["TP 2"]], of_family("qwen3"), tmp_path)


def refused(rank, model, config):
    try:
        parallelize(model, model.parts(), build_mesh(MeshSizes(1, 2), "cpu"), config)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("family", "spec", "message"),
    [
        (
            "apertus",
            FamilySpec(),
            "shares the matrices of layers.0.mlp and says nothing of layers.0.mlp.act_fn.alpha_p, layers.0.mlp.act_fn"
            ".alpha_n, which may lie between them",
        ),
        (
            "llama-3",
            FamilySpec(overrides={"layers.*.mlp.gate": "colwise"}),
            "names 'layers.*.mlp.gate', but the LLM has no",
        ),
        ("llama-3", FamilySpec(overrides={"layers.*.input_layernorm": "colwise"}), "LlamaRMSNorm and no nn.Linear"),
        (
            "gemma",
            None,
            "tensor_parallel_size (2) must divide num_key_value_heads (1): use 1, or parallel.uneven_heads=",
        ),
    ],
)
def test_plans_that_do_not_fit_the_model_are_refused(family, spec, message, of_family, tmp_path, monkeypatch):
    model = of_family(family)
    monkeypatch.setattr(registry, "_FAMILIES", {} if spec is None else {model.parts().config.model_type: spec})
    for answer in run_on_ranks(refused, tmp_path, model, ParallelConfig()):
        assert message in answer


def test_adapters_other_than_lora_are_refused_under_tensor_parallelism(of_family, tmp_path):
    model = of_family("llama-3", lora=LORA | {"use_dora": True})
    for answer in run_on_ranks(refused, tmp_path, model, ParallelConfig()):
        assert "of adapters only plain LoRA can" in answer


def in_bf16(rank, model):
    parallelize(model, model.parts(), build_mesh(MeshSizes(1, 2), "cpu"), ParallelConfig())
    from tests.s2s_model.parallel_checks import batches, num_labels, results

    shown = results(model, batches(1)[0], num_labels(1), 1)
    return float(shown["loss"]), {p.grad.dtype for p in model.parameters() if p.grad is not None}


def test_defect_02_tensor_and_sequence_parallel_in_bf16(of_family, tmp_path):
    """Forward, backward and one-frame decoding with transformers 5, an audio head of 3 codebooks on 2 processes."""
    model = of_family("llama-3", num_codebooks=3).bfloat16()
    expected = float(model(_batch()).objective(model.cfg)) / 39
    for loss, dtypes in run_on_ranks(in_bf16, tmp_path, model):
        assert loss == pytest.approx(expected, rel=0.02)  # bf16 has 8 bits
        assert dtypes == {torch.bfloat16}


def _batch():
    from tests.s2s_model.parallel_checks import batches

    return batches(1)[0]
