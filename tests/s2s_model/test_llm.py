import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from s2s_model.generation import check_cache
from s2s_model.llm import check_head, hidden_size, llm_blocks, llm_body, load_llm, text_config, text_logits
from tests.s2s_model.builders import VOCAB_SIZE
from tests.s2s_model.families import (
    FAMILIES,
    HIDDEN_SIZE,
    LLAMA_LIKE,
    SMALL,
    make_config,
    make_family,
    make_family_weights,
)
from tests.s2s_model.gguf_files import write_gguf


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return SimpleNamespace(
        config=FAMILIES[request.param](),
        folder=make_family_weights(request.param, tmp_path_factory.mktemp(request.param)),
    )


def token_ids():
    return torch.randint(4, VOCAB_SIZE, (2, 24), generator=torch.Generator().manual_seed(0))


def is_tied(llm):
    return llm.get_input_embeddings().weight.data_ptr() == llm.get_output_embeddings().weight.data_ptr()


@torch.no_grad()
def own_logits(llm):
    return llm.eval()(input_ids=token_ids()).logits


def hidden_of(llm, **kwargs):
    embeds = llm.get_input_embeddings()(token_ids())
    return llm_body(llm)(inputs_embeds=embeds, use_cache=False, **kwargs).last_hidden_state


# --- every family ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_logits_are_the_familys_own(family):
    llm = load_llm(family.folder, pretrained_weights=True).eval()
    torch.testing.assert_close(text_logits(llm, hidden_of(llm)), own_logits(llm), rtol=1e-5, atol=1e-5)


def test_the_checkpoints_weights_are_loaded_in_torchs_default_dtype(family):
    stored = load_file(Path(family.folder) / "model.safetensors")
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = load_llm(family.folder, pretrained_weights=True).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert stored.keys() <= loaded.keys()
    for name, weight in stored.items():
        assert torch.equal(loaded[name], weight.bfloat16())


@pytest.mark.parametrize("pretrained_weights", [True, False])
def test_embeddings_are_tied_as_the_family_ties_them_also_after_saving(family, pretrained_weights, tmp_path):
    llm = load_llm(family.folder, pretrained_weights=pretrained_weights)
    assert is_tied(llm) == family.config.tie_word_embeddings
    llm.save_pretrained(tmp_path)
    again = load_llm(str(tmp_path), pretrained_weights=True)
    assert is_tied(again) == family.config.tie_word_embeddings
    assert torch.equal(own_logits(again), own_logits(llm))


def test_gradients_reach_every_parameter(family):
    llm = load_llm(family.folder, pretrained_weights=False)
    text_logits(llm, hidden_of(llm)).logsumexp(-1).sum().backward()
    for name, parameter in llm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_blocks_are_the_repeated_layers(family):
    llm = load_llm(family.folder, pretrained_weights=False)
    blocks = llm_blocks(llm)
    assert len(blocks) == family.config.num_hidden_layers
    assert len({type(block) for block in blocks}) == 1
    in_blocks = {p.data_ptr() for block in blocks for p in block.parameters()}
    outside = [n for n, p in llm.named_parameters() if p.data_ptr() not in in_blocks]
    assert all(part in name for name, part in zip(outside, ("embed_tokens", "norm", "lm_head"), strict=False))
    assert hidden_size(llm) == HIDDEN_SIZE


# --- heads -------------------------------------------------------------------------------------------------------


def write_config(folder, class_name, **traits):
    make_config(class_name, **traits).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("class_name", "traits"),
    [
        ("CohereConfig", LLAMA_LIKE | {"logit_scale": 0.0625}),
        ("RecurrentGemmaConfig", LLAMA_LIKE | {"num_hidden_layers": 3, "lru_width": 32, "logits_soft_cap": 3.0}),
        (
            "FalconH1Config",
            LLAMA_LIKE
            | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
            | {"lm_head_multiplier": 0.3},
        ),
        (
            "GPT2Config",
            SMALL | {"n_embd": HIDDEN_SIZE, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
        ),
        (
            "OPTConfig",  # its embedding is narrower than its layers
            {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "word_embed_proj_dim": HIDDEN_SIZE, "ffn_dim": 64}
            | {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
        ),
    ],
)
@torch.no_grad()
def test_other_heads_and_bodies_are_known(tmp_path, class_name, traits):
    llm = load_llm(write_config(tmp_path, class_name, **traits), pretrained_weights=False).eval()
    torch.testing.assert_close(text_logits(llm, hidden_of(llm)), own_logits(llm), rtol=1e-5, atol=1e-5)
    assert hidden_size(llm) == HIDDEN_SIZE
    assert len(llm_blocks(llm)) == text_config(llm).num_hidden_layers


def test_a_family_with_another_head_is_refused(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    class DoublingConfig(LlamaConfig):
        model_type = "doubling_llama"

    class DoublingForCausalLM(LlamaForCausalLM):
        config_class = DoublingConfig

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 2
            return output

    AutoConfig.register("doubling_llama", DoublingConfig, exist_ok=True)
    AutoModelForCausalLM.register(DoublingConfig, DoublingForCausalLM, exist_ok=True)
    DoublingConfig(**LLAMA_LIKE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.pretrained_llm: DoublingForCausalLM computes its logits in a way"):
        load_llm(str(tmp_path), pretrained_weights=False)


def test_the_head_check_leaves_the_llm_as_it_was(tmp_path):
    llm = load_llm(make_family("llama-3", tmp_path), pretrained_weights=False).train()
    check_head(llm)
    assert llm.training
    assert not llm_body(llm)._forward_hooks
    assert all(p.grad is None for p in llm.parameters())


def test_an_llm_can_be_built_without_weights(tmp_path):
    with torch.device("meta"):
        llm = load_llm(make_family("gemma2", tmp_path), pretrained_weights=False)
    assert all(p.is_meta for p in llm.parameters())


def test_a_head_of_another_width_is_refused(tmp_path):
    llm = load_llm(make_family("mistral", tmp_path), pretrained_weights=False)
    llm.set_output_embeddings(torch.nn.Linear(16, VOCAB_SIZE))
    with pytest.raises(ValueError, match="reads vectors of 32 and gives vectors of 16"):
        hidden_size(llm)


# --- attention ---------------------------------------------------------------------------------------------------


def test_the_attention_is_the_one_asked_for(tmp_path):
    folder = make_family("qwen3", tmp_path)
    assert load_llm(folder, pretrained_weights=False).config._attn_implementation == "sdpa"
    eager = load_llm(folder, pretrained_weights=False, attn_implementation="eager")
    assert eager.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match=r"model\.attn_implementation: 'flash' can't be used"):
        load_llm(folder, pretrained_weights=False, attn_implementation="flash")


def test_gemma_2s_attention_cap_is_never_lost(tmp_path):
    folder = make_family_weights("gemma2", tmp_path)
    file = tmp_path / "config.json"
    capped = json.loads(file.read_text()) | {"attn_logit_softcapping": 0.5}
    file.write_text(json.dumps(capped))
    with pytest.raises(
        ValueError, match=r"model\.attn_implementation is sdpa.* soft cap \(0\.5\) of gemma2: use eager"
    ):
        load_llm(folder, pretrained_weights=True, attn_implementation="sdpa")
    with_cap = own_logits(load_llm(folder, pretrained_weights=True))
    file.write_text(json.dumps(capped | {"attn_logit_softcapping": None}))
    without = own_logits(load_llm(folder, pretrained_weights=True))
    assert not torch.allclose(with_cap, without, atol=1e-2)


# --- where it comes from -----------------------------------------------------------------------------------------


def multimodal_config(name):
    from transformers import Gemma3Config, Gemma3TextConfig, Mistral3Config, MistralConfig, PixtralVisionConfig

    text = LLAMA_LIKE | {"head_dim": 16}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    if name == "gemma3":
        return Gemma3Config(text_config=Gemma3TextConfig(**text), vision_config=vision)
    seeing = PixtralVisionConfig(**vision, head_dim=16)
    return Mistral3Config(text_config=MistralConfig(**text), vision_config=seeing, tie_word_embeddings=False)


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_of_a_multimodal_model_the_text_part_is_taken(tmp_path, name):
    from transformers import AutoModelForImageTextToText

    whole = AutoModelForImageTextToText.from_config(multimodal_config(name))
    whole.save_pretrained(tmp_path / "whole")
    llm = load_llm(str(tmp_path / "whole"), pretrained_weights=True)
    assert not [n for n, _ in llm.named_parameters() if "vision" in n or "projector" in n]
    assert text_config(llm) is llm.config
    torch.testing.assert_close(own_logits(llm), own_logits(whole))

    llm.save_pretrained(tmp_path / "text")
    again = load_llm(str(tmp_path / "text"), pretrained_weights=True)
    assert is_tied(again) == is_tied(llm) == (name == "gemma3")
    assert torch.equal(own_logits(again), own_logits(llm))
    assert type(load_llm(str(tmp_path / "whole"), pretrained_weights=False)) is type(llm)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    folder = make_family_weights("qwen2.5", tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model\.pretrained_llm: the checkpoint.* lacks 1 weights.*layers\.1\.mlp\.up"
    ):
        load_llm(folder, pretrained_weights=True)


@pytest.mark.parametrize("name", ["llama-tinyllama", "smollm2"])
def test_a_gguf_file_gives_the_weights_that_it_was_written_from(tmp_path, name):
    source = load_llm(make_family_weights(name, tmp_path), pretrained_weights=True)
    path = write_gguf(tmp_path / "llm.gguf", source)
    make_family("gemma3", tmp_path)  # a config beside it says nothing about it
    llm = load_llm(path, pretrained_weights=True)
    torch.testing.assert_close(own_logits(llm), own_logits(source))
    assert is_tied(llm) == is_tied(source)
    untrained = load_llm(path, pretrained_weights=False)
    assert untrained.config.num_hidden_layers == source.config.num_hidden_layers
    assert not torch.equal(own_logits(untrained), own_logits(source))


def test_a_gguf_file_that_isnt_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"model\.pretrained_llm: no file .*none\.gguf.*org/repo/file\.gguf"):
        load_llm(str(tmp_path / "none.gguf"), pretrained_weights=True)

    (tmp_path / "nine.gguf").touch()
    with pytest.raises(ValueError, match=r"no file .*none\.gguf .*: did you mean .*/nine\.gguf\?"):
        load_llm(str(tmp_path / "none.gguf"), pretrained_weights=True)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A folder of models in the current one, and a hub that isn't reached: nothing is cached."""
    import huggingface_hub.constants as hub

    (tmp_path / "parts" / "qwen").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "parts"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("parts/qwn", r", and the hub isn't asked, as parts is a folder here: did you mean parts/qwen\?$"),
        ("./parts/qwn", r": did you mean parts/qwen\?$"),
        ("./prts/qwen", r": did you mean parts/qwen\?$"),
        ("~/parts/qwn", r": did you mean .+/parts/qwen\?$"),
        (
            "parts/mistral",
            r", and the hub isn't asked, as parts is a folder here: check the path, or download the model of this name",
        ),
        ("/nowhere/at/all", r": check the path$"),
    ],
)
def test_a_mistyped_path_is_refused_before_the_hub_is_asked(parts, monkeypatch, name, hint):
    monkeypatch.setenv("HOME", str(parts.parent))
    where = re.escape(f"model.pretrained_llm: no folder {name} (in {parts.parent})")
    with pytest.raises(FileNotFoundError, match=f"^{where}{hint}"):
        load_llm(name, pretrained_weights=False)


def test_a_name_that_the_hub_doesnt_give_says_what_to_do(parts):
    words = r"it is no folder \(in {}\), and the hub gives none of this name: .+; download it and .*llm=/path\)$"
    with pytest.raises(ValueError, match=words.format(re.escape(str(parts.parent)))):
        load_llm("some/llm", pretrained_weights=False)
    with pytest.raises(ValueError, match=r"\(in .*; did you mean parts/qwen\?\)"):
        load_llm("prts/qwen", pretrained_weights=False)


def test_a_name_in_the_hubs_cache_is_loaded_beside_a_folder_of_its_first_word(parts):
    repository = parts.parent / "cache" / "models--parts--llama"
    make_family("llama-tinyllama", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert load_llm("parts/llama", pretrained_weights=False).config.model_type == "llama"


def test_a_path_in_the_home_folder_and_a_file(parts, monkeypatch):
    monkeypatch.setenv("HOME", str(parts))
    make_family("llama-tinyllama", parts / "qwen")
    assert load_llm("~/qwen", pretrained_weights=False).config.model_type == "llama"
    with pytest.raises(ValueError, match=r"config\.json is a file: give the folder that it lies in"):
        load_llm("parts/qwen/config.json", pretrained_weights=False)


def test_without_the_gguf_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)  # what an import of a package that isn't there meets
    with pytest.raises(ValueError, match=r"model\.pretrained_llm is a GGUF file.*pip install 's2s-model\[gguf\]'"):
        load_llm(str(tmp_path / "llm.gguf"), pretrained_weights=True)


@pytest.mark.parametrize(("pretrained_weights", "what"), [(True, "weights"), (False, "config")])
def test_a_folder_without_an_llm_is_refused(tmp_path, pretrained_weights, what):
    with pytest.raises(ValueError, match=rf"model\.pretrained_llm: no causal LM {what}"):
        load_llm(str(tmp_path), pretrained_weights=pretrained_weights)


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_loaded_in_bf16_pass_the_checks(name, tmp_path):
    llm = load_llm(make_family_weights(name, tmp_path), pretrained_weights=True, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in llm.parameters()} == {torch.bfloat16}
    check_cache(llm)
