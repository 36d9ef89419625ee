"""The same weights give the same numbers as NeMo's DuplexS2SModel, in float32 on a CPU.

Tolerance: both run the same float32 kernels, but sum the streams and the loss in another order; differences stay
some hundred times below 1e-4 of the largest value. Gradients that are zero in exact arithmetic (a key's bias) are
rounding noise of 1e-11, hence the absolute term.
"""

import pytest
import torch

from tests.s2s_model.builders import make_batch, slice_batch

RTOL, ATOL = 1e-4, 1e-8


@pytest.fixture
def nemo_model(config, model):
    """NeMo's model with our model's weights."""
    from nemo.collections.speechlm2.models import DuplexS2SModel

    peer = DuplexS2SModel(config | {"freeze_params": ["^audio_codec\\..+$"]}).eval()
    peer._trainer = None
    peer.llm.load_state_dict(model.llm.base_model.state_dict(), strict=False)
    with torch.no_grad():
        peer.embed_tokens.weight.copy_(model.llm.get_input_embeddings().weight)
        peer.lm_head.weight.copy_(model.llm.get_output_embeddings().weight)
        peer.audio_head.weight.copy_(model.audio_head.weight)
        peer.audio_head.bias.copy_(model.audio_head.bias)
        tables = model.embed_audio_tokens.weight.view(len(peer.embed_audio_tokens), -1, 32)
        for mine, table in zip(peer.embed_audio_tokens, tables, strict=True):
            mine.weight.copy_(table)
    peer.perception.load_state_dict(model.perception.state_dict())
    peer.log_dict = lambda *args, **kwargs: None
    return peer


def our_loss(model, batch):
    sums = model(batch)
    return sums.objective(model.cfg) / sums.num_frames


def close(ours, theirs):
    scale = theirs.abs().max().item()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max().item() <= RTOL * scale + ATOL


def test_logits_loss_and_gradients_equal_nemo_on_an_unpadded_batch(model, nemo_model):
    batch = make_batch((24, 24))
    ours = model.prepare_inputs(batch)
    theirs = nemo_model.prepare_inputs(dict(batch))
    assert torch.equal(ours.code_labels_BTK, theirs["audio_labels"])
    assert torch.equal(ours.text_labels_BT, theirs["text_labels"])
    text_BTV, codes_BTKC, _ = model.heads(model.hidden_states(ours))
    answer = nemo_model(theirs["input_embeds"])
    close(text_BTV, answer["text_logits"])
    close(codes_BTKC, answer["audio_logits"])

    loss = our_loss(model, batch)
    peer_loss = nemo_model.training_step(dict(batch), 0)["loss"]
    close(loss, peer_loss)
    loss.backward()
    peer_loss.backward()
    close(model.audio_head.weight.grad, nemo_model.audio_head.weight.grad)
    close(model.llm.get_input_embeddings().weight.grad, nemo_model.embed_tokens.weight.grad)
    close(model.llm.get_output_embeddings().weight.grad, nemo_model.lm_head.weight.grad)
    tables = torch.cat([table.weight.grad for table in nemo_model.embed_audio_tokens])
    close(model.embed_audio_tokens.weight.grad, tables)
    ours_by_name = dict(model.llm.base_model.named_parameters())
    for name, peer in nemo_model.llm.named_parameters():
        close(ours_by_name[name].grad, peer.grad)
    ours_by_name, theirs_by_name = (dict(m.perception.named_parameters()) for m in (model, nemo_model))
    assert set(ours_by_name) == set(theirs_by_name)
    for name, peer in theirs_by_name.items():
        if peer.grad is not None:
            close(ours_by_name[name].grad, peer.grad)


def test_greedy_decode_equals_nemo_token_for_token(model, nemo_model):
    batch = make_batch((20, 20))
    ours = model.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    theirs = nemo_model.offline_inference(batch["source_audio"].clone(), batch["source_audio_lens"])
    assert torch.equal(ours["tokens_text"], theirs["tokens_text"])
    assert torch.equal(ours["tokens_audio"], theirs["tokens_audio"])
    assert len(ours["tokens_audio"].unique()) > 2


def test_defect_03_padding_changes_nemos_loss_and_not_ours(model, nemo_model):
    padded = make_batch((24, 12))
    # Stored codes: a codec's encoder hears ahead, so alone it would code a dialogue's last frames otherwise.
    codes_BTK, code_lens = padded["target_codes"], padded["target_code_lens"] = model.target_codes(padded)
    total = 0.0
    for b, n in enumerate((24, 12)):
        alone = slice_batch(padded, b)
        alone["target_codes"], alone["target_code_lens"] = codes_BTK[b : b + 1, :n], code_lens[b : b + 1]
        total = total + our_loss(model, alone) * (n - 1)
    expected = total / (23 + 11)
    close(our_loss(model, padded), expected)
    peer_loss = nemo_model.training_step(dict(padded), 0)["loss"].item()
    assert peer_loss > 1.2 * expected.item()
