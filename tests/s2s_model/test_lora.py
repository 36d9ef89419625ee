import copy
import logging
import shutil

import pytest
import torch

from s2s_model import DuplexS2SModel
from s2s_model.freezing import freeze
from s2s_model.llm import llm_blocks, llm_body, load_llm, text_logits
from s2s_model.lora import TRAINED, inject_lora, load_lora, merge_lora, save_lora
from tests.s2s_model.builders import VOCAB_SIZE
from tests.s2s_model.families import FAMILIES, HIDDEN_SIZE, LLAMA_LIKE, make_config, make_family

CONFIG = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
PEFT_HAS_NO_CHOICE = {"phi3", "smollm3", "olmo2", "granite"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return make_family(request.param, tmp_path_factory.mktemp(request.param))


def build(folder, dtype=torch.float32):
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        return load_llm(folder, pretrained_weights=False)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture
def llm(tmp_path):
    return build(make_family("mistral", tmp_path))


def logits_of(llm):
    generator = torch.Generator().manual_seed(0)
    embeds_BTH = torch.randn(2, 24, HIDDEN_SIZE, generator=generator).to(llm.dtype)
    return text_logits(llm, llm_body(llm)(inputs_embeds=embeds_BTH, use_cache=False).last_hidden_state)


def train(llm, steps=2):
    optimizer = torch.optim.AdamW([p for p in llm.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        logits_of(llm).float().logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def state_of(llm):
    return {name: value.clone() for name, value in llm.state_dict().items()}


# --- every family ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_are_trained_and_the_untrained_change_nothing(family, dtype):
    llm = build(family, dtype)
    num_blocks = len(llm_blocks(llm))
    before = logits_of(llm).detach()
    names = inject_lora(llm, CONFIG)
    assert torch.equal(logits_of(llm), before)
    assert {name for name, p in llm.named_parameters() if p.requires_grad} == set(names)
    assert {p.dtype for p in llm.parameters()} == {dtype}
    assert len(llm_blocks(llm)) == num_blocks

    state = state_of(llm)
    train(llm)
    changed = {name for name, value in llm.state_dict().items() if not torch.equal(value, state[name])}
    assert changed == set(names)
    assert all(".lora_" in name for name in changed)


def test_merging_gives_a_plain_llm_with_the_same_logits(family, tmp_path):
    llm = build(family)
    plain, tied = state_of(llm), llm.config.tie_word_embeddings
    inject_lora(llm, CONFIG)
    train(llm)
    adapted = logits_of(llm).detach()
    merge_lora(llm)
    merged = llm.state_dict()
    assert merged.keys() == plain.keys()
    changed = [name for name in merged if not torch.equal(merged[name], plain[name])]
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    torch.testing.assert_close(logits_of(llm), adapted, rtol=1e-5, atol=1e-5)
    llm.save_pretrained(tmp_path)
    again = load_llm(str(tmp_path), pretrained_weights=True)
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied
    assert torch.equal(logits_of(again), logits_of(llm))


@pytest.mark.parametrize("name", ["llama-3", "gemma3", "qwen2.5", *sorted(PEFT_HAS_NO_CHOICE)])
def test_the_layers_adapted_by_default_are_logged(tmp_path, caplog, name):
    llm = build(make_family(name, tmp_path))
    with caplog.at_level(logging.INFO, logger="s2s_model.lora"):
        adapted = {parameter.split(".")[-4] for parameter in inject_lora(llm, CONFIG)}
    if name in PEFT_HAS_NO_CHOICE:
        assert {"o_proj", "down_proj"} <= adapted
        assert "lm_head" not in adapted
    else:
        assert adapted == {"q_proj", "v_proj"}
    assert all(layer in caplog.text for layer in adapted)


# --- with freeze -------------------------------------------------------------------------------------------------


def test_freezing_the_llm_leaves_the_adapters_trained(llm):
    names = inject_lora(llm, CONFIG)
    freeze(llm, [r"^model\..+$"], [TRAINED], [])
    assert [name for name, p in llm.named_parameters() if p.requires_grad] == names


def test_what_freezing_is_prevented_for_is_trained_beside_the_adapters(llm):
    names = inject_lora(llm, CONFIG)
    freeze(llm, [], [TRAINED, r"^lm_head\.weight$"], [], reopen="")
    assert [name for name, p in llm.named_parameters() if p.requires_grad] == [*names, "lm_head.weight"]


# --- what a config may ask for -----------------------------------------------------------------------------------


def test_target_modules_are_those_of_the_config(llm):
    names = inject_lora(llm, CONFIG | {"target_modules": ["self_attn.o_proj", "lm_head"]})
    assert {name.split(".lora_")[0] for name in names} == {
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        "lm_head",
    }
    train(llm)
    adapted = logits_of(llm).detach()
    merge_lora(llm)
    torch.testing.assert_close(logits_of(llm), adapted, rtol=1e-5, atol=1e-5)


def test_layers_can_be_left_out(llm):
    names = inject_lora(llm, CONFIG | {"target_modules": "all-linear", "exclude_modules": ["mlp.down_proj"]})
    adapted = {name.split(".lora_")[0].split(".")[-1] for name in names}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}


def test_the_fused_experts_of_a_mixture_can_be_adapted_and_merged(tmp_path):
    make_config("MixtralConfig", **LLAMA_LIKE, num_local_experts=2).save_pretrained(tmp_path)
    llm = build(str(tmp_path))
    before = logits_of(llm).detach()
    plain = list(llm.state_dict())
    inject_lora(llm, CONFIG | {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]})
    assert torch.equal(logits_of(llm), before)
    train(llm)
    adapted = logits_of(llm).detach()
    merge_lora(llm)
    torch.testing.assert_close(logits_of(llm), adapted, rtol=1e-5, atol=1e-5)
    assert list(llm.state_dict()) == plain


def test_dora_starts_from_the_llms_output_and_merges(llm):
    before = logits_of(llm).detach()
    names = inject_lora(llm, CONFIG | {"use_dora": True})
    assert any("lora_magnitude_vector" in name for name in names)
    torch.testing.assert_close(logits_of(llm), before, rtol=1e-5, atol=1e-5)
    train(llm)
    adapted = logits_of(llm).detach()
    assert not torch.allclose(adapted, before, atol=1e-3)
    merge_lora(llm)
    torch.testing.assert_close(logits_of(llm), adapted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alfa": 8}, r"model\.lora\.lora_alfa is unknown; did you mean lora_alpha\?"),
        ({"r": "eight"}, r"model\.lora\.r is 'eight': give a number"),
        ({"r": 0}, r"model\.lora: .*positive.* 0"),
        ({"task_type": "SPEECH"}, r"model\.lora\.task_type is SPEECH"),
        ({"target_modules": ["q_proj", "w_proj"]}, r"model\.lora\.target_modules: 'w_proj' is the end of no layer"),
        ({"target_modules": ["w_proj"]}, r"model\.lora: .*w_proj.* not found"),
        ({"modules_to_save": ["lm_head"]}, r"model\.lora\.modules_to_save isn't supported.*prevent_freeze_params"),
        ({"init_lora_weights": "eva"}, r"model\.lora\.init_lora_weights is 'eva': .* set init_lora_weights to true"),
        ({"lora_bias": True}, r"model\.lora\.lora_bias isn't supported"),
        ({"bias": "all"}, r"model\.lora\.bias is 'all', only 'none'.*prevent_freeze_params"),
    ],
)
def test_what_cant_be_done_is_refused_with_its_key(llm, config, message):
    with pytest.raises(ValueError, match=message):
        inject_lora(llm, config)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_tied_embeddings_are_refused(tmp_path, target):
    llm = build(make_family("llama-3", tmp_path))
    with pytest.raises(ValueError, match=r"model\.lora\.target_modules.* share one weight"):
        inject_lora(llm, CONFIG | {"target_modules": ["q_proj", target]})


def test_without_adapters_there_is_nothing_to_merge(llm):
    with pytest.raises(ValueError, match="no adapters to merge"):
        merge_lora(llm)


# --- adapters that are there already ------------------------------------------------------------------------------


def test_adapters_are_saved_and_start_there(family, tmp_path):
    trained, fresh = build(family), build(family)
    inject_lora(trained, CONFIG)
    names = inject_lora(fresh, CONFIG)
    train(trained)
    save_lora(trained, tmp_path / "adapter")
    load_lora(fresh, str(tmp_path / "adapter"))
    assert torch.equal(logits_of(fresh), logits_of(trained))
    assert all(fresh.get_parameter(name).requires_grad for name in names)


def test_what_peft_itself_saved_is_read(llm, tmp_path):
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(copy.deepcopy(llm), LoraConfig(**CONFIG, target_modules=["q_proj"]))
    train(theirs.base_model.model)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    inject_lora(llm, CONFIG | {"target_modules": ["q_proj"]})
    load_lora(llm, str(tmp_path / "theirs/adapter_model.safetensors"))
    assert torch.equal(logits_of(llm), logits_of(theirs.base_model.model))


def test_an_adapter_of_another_shape_is_refused(llm, tmp_path):
    other = copy.deepcopy(llm)
    inject_lora(other, CONFIG | {"r": 2, "target_modules": ["q_proj"]})
    save_lora(other, tmp_path / "other")
    inject_lora(llm, CONFIG | {"target_modules": ["q_proj"]})
    with pytest.raises(ValueError, match=r"q_proj\.lora_A\.weight is \[2, \d+\] there, \[4, \d+\] here"):
        load_lora(llm, str(tmp_path / "other"))
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"model\.pretrained_lora: .*none is no adapter that peft saved"):
        load_lora(llm, str(tmp_path / "none"))


@pytest.mark.parametrize("other", [{"lora_alpha": 4}, {"use_rslora": True}])
def test_an_adapter_that_counts_otherwise_is_refused(llm, tmp_path, other):
    trained = copy.deepcopy(llm)
    inject_lora(trained, CONFIG)
    save_lora(trained, tmp_path / "adapter")
    inject_lora(llm, CONFIG | other)
    with pytest.raises(ValueError, match=rf"adapter_config.json has {next(iter(other))}: .* give them the same"):
        load_lora(llm, str(tmp_path / "adapter"))


def test_an_adapter_without_its_shape_in_the_config_is_refused(config):
    with pytest.raises(ValueError, match=r"model\.pretrained_lora is an adapter, and model\.lora is null"):
        DuplexS2SModel({**config, "pretrained_lora": "adapter"})


def test_a_saved_model_needs_the_adapter_no_more(config, llm_dir, tmp_path):
    llm = build(llm_dir)
    inject_lora(llm, CONFIG)
    train(llm)
    save_lora(llm, tmp_path / "adapter")
    model = DuplexS2SModel({**config, "lora": CONFIG, "pretrained_lora": str(tmp_path / "adapter")})
    shutil.rmtree(tmp_path / "adapter")
    model.save_pretrained(tmp_path / "saved")
    again = DuplexS2SModel.from_pretrained(tmp_path / "saved")
    for name, value in model.llm.state_dict().items():
        assert torch.equal(again.llm.state_dict()[name], value), name
    assert any(value.any() for name, value in model.llm.state_dict().items() if ".lora_B." in name)


# --- NeMo --------------------------------------------------------------------------------------------------------


def test_defect_01_nemos_lora_raises_and_ours_trains(config, llm_dir):
    from nemo.collections.speechlm2.models import DuplexS2SModel

    with pytest.raises(AttributeError, match="has no attribute 'model'"):
        DuplexS2SModel(config | {"freeze_params": [], "prevent_freeze_params": [], "lora": CONFIG})

    llm = build(llm_dir)
    assert llm.config.vocab_size == VOCAB_SIZE
    names = inject_lora(llm, CONFIG)
    state = state_of(llm)
    train(llm)
    assert {name for name, value in llm.state_dict().items() if not torch.equal(value, state[name])} == set(names)
