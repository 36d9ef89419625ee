"""The whole model on two and four processes against one: every family, and every way of laying it out."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from s2s_model.dtypes import default_dtype
from s2s_parallel import context_parallel, registry
from s2s_parallel.config import ParallelConfig
from s2s_parallel.context_parallel import check_context_parallel
from s2s_parallel.fsdp import gathered
from s2s_parallel.mesh import MeshSizes, build_mesh
from s2s_parallel.parallelize import parallelize
from s2s_parallel.registry import FamilySpec, Style, register_family
from tests.s2s_model import families
from tests.s2s_model.builders import make_codec, perception
from tests.s2s_model.families import make_family
from tests.s2s_model.parallel_checks import (
    FAMILIES,
    LAYOUTS,
    Layout,
    batches,
    build,
    compare,
    num_labels,
    results,
)
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


@pytest.mark.parametrize("names", [("TP+SP 2", "CP 2"), ("TP+SP+FSDP2 2×2",)], ids=["two", "four"])
@pytest.mark.parametrize("family", FAMILIES)
def test_processes_together_equal_one(family, names, of_family, tmp_path):
    compare([LAYOUTS[name] for name in names], of_family(family), tmp_path)


@pytest.mark.parametrize("family", ["llama-3", "gemma2", "qwen3-moe", "gpt-oss"])
def test_one_axis_alone(family, of_family, tmp_path):
    """What the others contain, for some of the families; the table has all."""
    compare([LAYOUTS["TP 2"], LAYOUTS["FSDP2 2"]], of_family(family), tmp_path)


TP2, DP2, BOTH = MeshSizes(1, 2), MeshSizes(2), MeshSizes(2, 2)
CP2 = MeshSizes(1, context_parallel_size=2)


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
        pytest.param(
            DP2, {}, {"perception": perception() | {"activation_checkpointing": True}}, id="encoder recomputed"
        ),
        pytest.param(MeshSizes(1, 2, 1, 2), {}, {}, id="shared frames of two shares"),
        pytest.param(MeshSizes(2, 1, 2, 2), {}, {}, id="two copies, each of two shares of frames"),
        pytest.param(MeshSizes(1, 1, 1, 4), {"activation_checkpointing": "full"}, {}, id="four shares, recomputed"),
        pytest.param(MeshSizes(2, 1, 1, 2), {"activation_checkpointing": "selective"}, {"lora": LORA}, id="CP, LoRA"),
        pytest.param(BOTH, {}, {"predict_user_text": True}, id="the user's text"),
        pytest.param(BOTH, {}, {"lora": LORA}, id="LoRA"),
        pytest.param(TP2, {"sequence_parallel": False}, {"lora": LORA}, id="LoRA without sequence parallel"),
    ],
)
def test_each_way_of_laying_it_out_equals_one_process(sizes, options, keys, of_family, tmp_path):
    compare([Layout(sizes, ParallelConfig(**options))], of_family("llama-3", **keys), tmp_path)


def compiled(rank, model, sizes, options):
    """Gradients, and how many graphs were compiled; not by inductor, which takes a minute."""
    import torch._dynamo

    torch._dynamo.reset()
    config = ParallelConfig(compile=True, **options)
    dp = sizes.data_parallel_size
    torch.compile, own = partial(torch.compile, backend="aot_eager"), torch.compile
    try:
        parallelize(model, model.parts(), build_mesh(sizes, "cpu"), config)
        shown = results(model, batches(dp)[rank // sizes.num_peers], num_labels(dp), dp)
    finally:
        torch.compile = own
    counters = torch._dynamo.utils.counters
    return (
        shown["grad llm.model.layers.11.mlp.up_proj.weight"],
        counters["stats"]["unique_graphs"],
        dict(counters["graph_break"]),
    )


@pytest.mark.parametrize(
    ("sizes", "mode"),
    [(TP2, "none"), (DP2, "full"), (CP2, "full")],
    ids=["TP 2", "FSDP2 2, recomputed", "CP 2, recomputed"],
)
def test_layers_are_compiled_once_for_all(sizes, mode, of_family, tmp_path):
    """Twelve of them; the encoder has up to four."""
    config = FAMILIES["llama-3"]()
    config.num_hidden_layers = 12
    model = of_family(config)
    dp = sizes.data_parallel_size
    alone = copy.deepcopy(model)
    for batch in batches(dp):
        expected = results(alone, batch, num_labels(dp), 1)["grad llm.model.layers.11.mlp.up_proj.weight"]
    ranks = run_on_ranks(compiled, tmp_path, model, sizes, {"activation_checkpointing": mode})
    for gradient, num_graphs, breaks in ranks:
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
        # torch 2.11 breaks the graph at exchanges between peers: more pieces, but not as many for each layer.
        assert 1 <= num_graphs < (24 if breaks else 12), breaks


def test_blocks_that_the_plan_leaves_out_see_all_frames(of_family, tmp_path):
    """Linear attention: each process computes it whole, also where frames are shared."""
    config = families.of_llama_shape("OlmoHybridConfig", num_hidden_layers=4, num_key_value_heads=4)
    compare([LAYOUTS["TP+SP 2"]], of_family(config), tmp_path)


@pytest.mark.parametrize("sizes", [MeshSizes(1, 4), MeshSizes(2, 2)])
def test_vocabularies_need_not_divide(sizes, of_family, tmp_path):
    """Of 67 tokens and 3 × 23 codes, a process has 17 or 34, and 18 or 35: some end within a codebook."""
    config = families.of_llama_shape(
        "LlamaConfig", num_key_value_heads=4, vocab_size=67, tie_word_embeddings=True, pad_token_id=66
    )
    compare([Layout(sizes)], of_family(config, num_codebooks=3), tmp_path)


def shares_frames(rank, model):
    """Where a share's attention sees no frame but its own."""
    context_parallel.frames_are_shared, own = lambda: False, context_parallel.frames_are_shared
    parallelize(model, model.parts(), build_mesh(CP2, "cpu"), ParallelConfig())
    unshared = model(batches(1)[0]).text.item()
    context_parallel.frames_are_shared = own
    return unshared, model(batches(1)[0]).text.item()


def test_frames_of_other_peers_are_attended_to(of_family, tmp_path, monkeypatch):
    """The check of context parallelism can fail: without the gathered keys and values the loss is another one."""
    model = of_family("llama-3")
    expected = copy.deepcopy(model)(batches(1)[0]).text.item()
    gather = context_parallel.peers.gather_and_enter
    for whole, shared in run_on_ranks(shares_frames, tmp_path, model):
        assert whole == shared == pytest.approx(expected, rel=1e-5)
    alone = {"gather_and_enter": lambda x, dim, group: torch.cat([x] * group.size(), dim)}
    monkeypatch.setattr(context_parallel, "peers", SimpleNamespace(**vars(context_parallel.peers) | alone))
    assert context_parallel.peers.gather_and_enter is not gather
    for _, shared in run_on_ranks(shares_frames, tmp_path, model):
        assert abs(shared - expected) > 1e-4 * expected


def refuses_frames(rank, hybrid, flex):
    told = [refusal_of(hybrid)]
    register_family("olmo_hybrid", FamilySpec(context_parallel=True))  # which isn't so
    return [*told, refusal_of(hybrid), refusal_of(flex)]


def refusal_of(model):
    with pytest.raises(ValueError, match="context_parallel_size") as caught:
        parallelize(model, model.parts(), build_mesh(CP2, "cpu"), ParallelConfig())
    return str(caught.value)


def test_layers_that_see_frames_in_another_way_refuse_to_share_them(of_family, tmp_path):
    hybrid = of_family(families.of_llama_shape("OlmoHybridConfig", num_hidden_layers=4, num_key_value_heads=4))
    flex = of_family("llama-3")
    flex.llm.config._attn_implementation = "flex_attention"  # built so, it would compile a mask for its head's check
    for unknown, unlike, other in run_on_ranks(refuses_frames, tmp_path, hybrid, flex):
        assert "olmo_hybrid LLMs aren't known to share frames, as apertus, cohere," in unknown
        assert "register the family with context_parallel=True" in unknown
        assert "layer 0 of OlmoHybridModel has 0 attentions by transformers' registry" in unlike
        assert "model.attn_implementation is flex_attention" in other
        assert "use sdpa or eager" in other


def test_rotary_frequencies_that_follow_the_length_refuse_to_share_frames():
    config = FAMILIES["phi3"]()
    check_context_parallel(config)
    config.rope_parameters = {
        "full_attention": {"rope_type": "longrope"},
        "sliding_attention": {"rope_type": "default"},
    }
    with pytest.raises(ValueError, match=r"follow the length \(rope_type longrope\), of which a process would see"):
        check_context_parallel(config)


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
    with default_dtype(torch.bfloat16):  # as Lightning's bf16-true steps
        shown = results(model, batches(1)[0], num_labels(1), 1)
    return float(shown["loss"]), {p.grad.dtype for p in model.parameters() if p.grad is not None}


def test_defect_02_tensor_and_sequence_parallel_in_bf16(of_family, tmp_path):
    """Forward, backward and one-frame decoding with transformers 5, an audio head of 3 codebooks on 2 processes."""
    model = of_family("llama-3", num_codebooks=3).bfloat16()
    expected = float(model(batches(1)[0]).objective(model.cfg)) / num_labels(1)
    for loss, dtypes in run_on_ranks(in_bf16, tmp_path, model):
        assert loss == pytest.approx(expected, rel=0.02)  # bf16 has 8 bits
        assert dtypes == {torch.bfloat16}


def refusals(rank, model):
    """What is told of settings that don't go together."""
    mesh = build_mesh(TP2, "cpu")
    told = []
    for laid_on, options in (
        (None, {"param_dtype": "bfloat16"}),
        (None, {"cpu_offload": True}),
        (mesh, {"cpu_offload": True}),
        (mesh, {"compile": True, "activation_checkpointing": "selective"}),
    ):
        with pytest.raises(ValueError, match=r"parallel\.") as caught:
            parallelize(model, model.parts(), laid_on, ParallelConfig(**options))
        told.append(str(caught.value))
    return told


def test_settings_that_do_not_go_together_are_refused(of_family, tmp_path):
    for told in run_on_ranks(refusals, tmp_path, of_family("llama-3")):
        assert told[0].startswith("parallel.param_dtype is what FSDP does")
        assert told[1].startswith("parallel.cpu_offload is what FSDP does")
        assert "set trainer.strategy.tensor_parallel_size=1" in told[2]
        assert "activation_checkpointing=selective sees no operations" in told[3]


def talks(rank, model):
    """A live session on weights that are sharded, and gathered."""
    model.eval()
    mesh = build_mesh(DP2, "cpu")
    parallelize(model, model.parts(), mesh, ParallelConfig())
    with pytest.raises(ValueError, match="sharded over processes: use it within"):
        model.open_session()
    audio_BS = batches(2)[rank]["source_audio"]
    with gathered(model):
        session = model.open_session(batch_size=1)
        outputs = [session.push(audio_BS), session.flush()]
        offline = model.offline_inference(audio_BS, torch.tensor([audio_BS.shape[1]]), decode_audio=False)
    return torch.cat([output.tokens_BN for output in outputs], 1), offline["tokens_text"]


def test_live_sessions_on_gathered_weights(of_family, tmp_path):
    """Of unequal length: 24 and 17 frames."""
    for said, expected in run_on_ranks(talks, tmp_path, of_family("llama-3")):
        assert torch.equal(said, expected)


def validates(rank, model):
    """Two batches on the first process, one and an empty one on the second."""
    parallelize(model, model.parts(), build_mesh(DP2, "cpu"), ParallelConfig())
    logged = {}
    model.log = lambda name, value, **_: logged.update({name: float(value)})
    model.eval()
    model.on_validation_epoch_start()
    with torch.no_grad():
        for batch in batches(2) if rank == 0 else [batches(2)[1]]:
            model.validation_step({"set": batch}, 0)
        model.validation_step({"set": None}, 0)
    model.on_validation_epoch_end()
    return logged


def test_processes_validate_as_many_batches_as_they_have(of_family, tmp_path):
    model = of_family("llama-3")
    first, second = run_on_ranks(validates, tmp_path, model)
    assert first == second
    sums = [model.eval()(batch) for batch in (*batches(2), batches(2)[1])]
    expected = sum(float(s.objective(model.cfg)) for s in sums) / sum(int(s.num_frames) for s in sums)
    assert first["val_loss"] == pytest.approx(expected, rel=1e-5)


def counts(rank, model, batch):
    """The statistics of a validated batch on tensor parallel peers."""
    parallelize(model, model.parts(), build_mesh(TP2, "cpu"), ParallelConfig())
    model.eval().on_validation_epoch_start()
    return model.validation_step({"set": batch}, 0)["set"]["statistics"]


def test_peers_count_as_one_process(of_family, tmp_path):
    model, (batch,) = of_family("llama-3"), batches(1)
    expected = copy.deepcopy(model).eval().validation_step({"set": batch}, 0)["set"]["statistics"]
    for counted in run_on_ranks(counts, tmp_path, model, batch):
        torch.testing.assert_close(counted, expected)


def moves(rank, model):
    """Lightning on one device, then on a mesh."""
    model.configure_model()
    model._device_mesh = build_mesh(DP2, "cpu")
    with pytest.raises(ValueError, match="laid out on one device and can't move to DeviceMesh"):
        model.configure_model()
    return True


def test_a_model_stays_where_it_was_laid_out(of_family, tmp_path):
    assert all(run_on_ranks(moves, tmp_path, of_family("llama-3")))
