"""Layers that are built without torch's first values have all of theirs in the end."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from s2s_model.first_values import drawn_once

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


def llama(**keys):
    return AutoConfig.for_model("llama", **({"vocab_size": 50} | CONFIG | keys))


def test_torchs_draw_is_left_out(monkeypatch):
    def drawn(*args, **kwargs):
        raise AssertionError("a layer was filled twice")

    monkeypatch.setattr(nn.Linear, "reset_parameters", drawn)
    monkeypatch.setattr(nn.Embedding, "reset_parameters", drawn)
    with drawn_once():
        model = AutoModelForCausalLM.from_config(llama(attention_bias=True))
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert model.model.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert nn.Linear.reset_parameters is drawn  # as before


def test_layers_that_are_passed_over_get_torchs_values():
    class PassesOver(LlamaForCausalLM):  # over its head; the rest is another module's to fill
        def _init_weights(self, module):
            pass

    with drawn_once():
        model = PassesOver(llama(vocab_size=500))
    assert model.lm_head.weight.std().item() == pytest.approx(32**-0.5 / 3**0.5, rel=0.1)  # uniform within 32 ** -0.5
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_what_was_written_stays_where_only_a_bias_was_passed_over():
    with drawn_once():
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight.fill_(5.0)
    assert (layer.weight == 5.0).all()
    assert layer.bias.isfinite().all()


def test_convolutions_with_weight_norm_that_are_loaded():
    source = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
    with drawn_once():
        target = nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 4, 5))
        target.load_state_dict(source.state_dict())
    assert torch.equal(target.weight, source.weight)
    assert torch.equal(target.bias, source.bias)


def test_layers_on_meta_stay_there():
    with drawn_once(), torch.device("meta"):
        layer = nn.Linear(3, 2)
    assert layer.weight.is_meta


def test_an_error_within_leaves_torch_as_it_was():
    own = nn.Linear.reset_parameters
    with pytest.raises(RuntimeError), drawn_once():
        raise RuntimeError
    assert nn.Linear.reset_parameters is own
