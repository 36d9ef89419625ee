"""Plans: where they come from, and what is refused before anything is shared."""

from types import SimpleNamespace

import pytest
import transformers

from s2s_parallel import registry
from s2s_parallel.registry import FamilySpec, Style, plan_for, register_family
from s2s_parallel.tensor_parallel import check_sizes, sizes_for


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))


def config(model_type="my_llm", plan=None, **keys):
    return SimpleNamespace(model_type=model_type, base_model_tp_plan=plan, **keys)


def test_the_plan_is_that_of_the_hugging_face_config():
    plan = plan_for(transformers.LlamaConfig())
    assert plan.styles["layers.*.self_attn.q_proj"] is Style.COLWISE
    assert plan.styles["layers.*.mlp.down_proj"] is Style.ROWWISE


def test_a_family_without_a_plan_is_told_what_works():
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size: gpt2 LLMs come without a plan.* set it to 1 .*register"
    ):
        plan_for(transformers.GPT2Config())


def test_a_user_registers_a_family_in_one_call():
    register_family("my_llm", FamilySpec(plan={"layers.*.attn.qkv": "colwise"}))
    assert plan_for(config()).styles == {"layers.*.attn.qkv": Style.COLWISE}


def test_overrides_go_over_the_configs_plan():
    register_family("my_llm", FamilySpec(overrides={"layers.*.a": "replicate"}))
    plan = plan_for(config(plan={"layers.*.a": "colwise", "layers.*.b": "rowwise"}))
    assert plan.styles == {"layers.*.a": Style.REPLICATE, "layers.*.b": Style.ROWWISE}


def test_an_unknown_style_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"unknown style 'colwize' for 'layers.*did you mean 'colwise'\?"):
        register_family("my_llm", FamilySpec(plan={"layers.*.a": "colwize"}))
    with pytest.raises(ValueError, match="plan of my_llm has the unknown style 'mla'"):
        plan_for(config(plan={"layers.*.a": "mla"}))


def test_experts_are_shared_as_wholes():
    plan = {"layers.*.mlp.experts.gate_up_proj": "packed_colwise", "layers.*.mlp.experts": "moe_tp_experts"}
    assert plan_for(config(plan=plan)).styles == {"layers.*.mlp.experts": Style.EXPERTS}


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (8, r"tensor_parallel_size \(8\) must divide num_key_value_heads \(4\): use 1, 2 or 4, or .*gather"),
        (3, r"tensor_parallel_size \(3\) must divide num_attention_heads \(32\)"),
    ],
)
def test_heads_that_do_not_divide_are_refused_with_both_numbers(size, message):
    llama = transformers.LlamaConfig(num_attention_heads=32, num_key_value_heads=4)
    with pytest.raises(ValueError, match=message):
        check_sizes(llama, size, "refuse")


def test_gathered_heads_need_divide_nothing_but_the_features_do():
    llama = transformers.LlamaConfig(num_key_value_heads=1, num_attention_heads=32, intermediate_size=96)
    check_sizes(llama, 2, "gather")
    assert sizes_for(llama) == [1]
    assert sizes_for(llama, "gather") == [1, 2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match=r"\(64\) must divide intermediate_size \(96\): use 1, 2, 4, 8, 16 or 32$"):
        check_sizes(llama, 64, "gather")
