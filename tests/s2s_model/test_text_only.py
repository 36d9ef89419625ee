"""Dialogues of text alone among others: of them the agent's text is learned, and nothing else is read or learned.

Tolerance: sums are taken in another order: float32, 1e-5.
"""

import pytest
import torch

from s2s_model import DuplexS2SModel
from tests.s2s_model.builders import make_batch, slice_batch

KEYS = {"predict_user_text": True, "delay_source_text_by": 1, "token_loss_weight": {"pad": 0.5}}


@pytest.fixture(params=["reduced", "by logits", "graphed"])
def model(request, config, monkeypatch):
    torch.manual_seed(0)
    model = DuplexS2SModel(config | KEYS)
    if request.param == "by logits":
        monkeypatch.setattr("s2s_model.network.can_reduce", lambda head: False)
    if request.param == "graphed":
        model.graph()
    return model


def mixed(*text_only):
    return make_batch((20, 14)) | {"text_only": torch.tensor(text_only)}


def losses(model, batch):
    return {name: float(loss) for name, loss in model(batch).named().items()}


def test_its_text_is_learned_and_its_sound_is_not(model):
    batch = mixed(False, True)
    spoken, read = (slice_batch(batch, b) for b in (0, 1))
    whole, of_spoken, of_read = losses(model, batch), losses(model, spoken), losses(model, read)
    assert of_read["audio_loss"] == of_read["user_text_loss"] == 0
    assert of_read["text_loss"] > 0
    assert min(of_spoken.values()) > 0
    assert whole == pytest.approx({name: of_spoken[name] + of_read[name] for name in whole}, rel=1e-5)
    assert int(model(batch).num_frames) == 19 + 13


def test_no_sound_of_it_is_read_but_both_texts_are(model):
    batch = mixed(False, True)
    before = losses(model, batch)
    for key in ("source_audio", "target_audio"):
        batch[key] = batch[key].clone()
        batch[key][1] = batch[key][1].flip(0) * 3
    assert losses(model, batch) == pytest.approx(before, rel=1e-6)
    batch["text_only"] = torch.tensor([False, False])
    heard = losses(model, batch)
    assert all(heard[name] != pytest.approx(before[name], rel=1e-3) for name in heard)
    batch["text_only"] = torch.tensor([False, True])
    batch["source_tokens"] = batch["source_tokens"].clone()
    batch["source_tokens"][1, 1:5] = 7
    changed = losses(model, batch)
    assert changed["text_loss"] != pytest.approx(before["text_loss"], rel=1e-4)
    assert changed["user_text_loss"] == pytest.approx(before["user_text_loss"], rel=1e-6)


def test_where_none_is_the_losses_are_those_without_the_key(model):
    batch = mixed(False, False)
    with_key = losses(model, batch)
    del batch["text_only"]
    assert losses(model, batch) == pytest.approx(with_key, rel=1e-6)


def test_parts_for_sound_learn_nothing_of_it(model):
    model(mixed(True, True)).objective(model.cfg).backward()
    for part in (model.perception, model.audio_head, model.asr_head, model.embed_audio_tokens):
        assert all(p.grad is None or not p.grad.any() for p in part.parameters())
    assert model.embed_asr_tokens.weight.grad.any()
    assert model.llm.get_input_embeddings().weight.grad.any()


def test_a_validation_refuses_it(config):
    model = DuplexS2SModel(config | KEYS)
    with pytest.raises(ValueError, match=r"cut cut-1 is text alone \(text_only\), and a validation .*take it out"):
        model.validation_step({"val": mixed(False, True)}, 0)
