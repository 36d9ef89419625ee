"""A model that starts as its LLM reads text, and learns to hear and speak from there."""

import pytest
import torch

from s2s_model import DuplexS2SModel
from s2s_model.llm import llm_body
from s2s_model.perception.adapters import STACKING
from tests.s2s_model.builders import make_batch


def build(config, **keys):
    torch.manual_seed(0)
    return DuplexS2SModel({**config, "predict_user_text": True, **keys})


def test_before_training_the_llm_reads_nothing_but_text(config):
    batch = make_batch((12, 9))
    silent, plain = build(config, start_from_text=True), build(config)
    inputs = silent.prepare_inputs(batch)
    words_BTH = silent.llm.get_input_embeddings()(inputs.text_BT) + silent.embed_asr_tokens(inputs.user_text_BT)
    read_BTH = llm_body(silent.llm)(inputs_embeds=words_BTH, use_cache=False).last_hidden_state
    assert torch.equal(silent.hidden_states(inputs), read_BTH)
    assert not torch.allclose(plain.hidden_states(plain.prepare_inputs(batch)), read_BTH)


def test_what_starts_at_zero_is_trained(config):
    model = build(config, start_from_text=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    for _ in range(2):
        sums = model(make_batch((12, 9)))
        optimizer.zero_grad()
        (sums.objective(model.cfg) / sums.num_frames).backward()
        optimizer.step()
    for weight in (model.embed_audio_tokens.weight, model.perception.proj.weight):
        assert weight.any()
    before_it = [p for name, p in model.perception.named_parameters() if p.grad is not None and "proj." not in name]
    assert any(p.grad.any() for p in before_it), "what lies before the projection learns from the second step on"


def test_without_a_projection_it_is_refused(config):
    adapter = {"_target_": STACKING, "subsampling_factor": 1}  # it projects by itself
    with pytest.raises(ValueError, match=r"model\.start_from_text: nothing projects the encoder's frames"):
        build({**config, "perception": {**config["perception"], "modality_adapter": adapter}}, start_from_text=True)
