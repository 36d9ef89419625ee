"""A checkpoint of NeMo's DuplexS2SModel, loaded here, answers as it does there.

Tolerance as in test_nemo_parity: the same float32 kernels, sums in another order.
"""

import json
import logging
import re
import shutil

import pytest
import torch
from lightning import Trainer

from s2s_model import DuplexS2SModel
from tests.s2s_model import builders
from tests.s2s_model.builders import make_batch, make_codec, make_llm, model_config
from tests.s2s_model.families import make_family, make_family_weights
from tests.s2s_model.perception_builders import make_asr

RTOL = 1e-4


def build_nemo(llm, codec, **overrides):
    from nemo.collections.speechlm2.models import DuplexS2SModel as NemoModel

    torch.manual_seed(0)
    return NemoModel(model_config(llm, codec, freeze_params=[r"^audio_codec\..+$"], **overrides)).eval()


def save_ckpt(peer, path):
    """As Lightning's trainer saves it."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(peer)
    trainer.save_checkpoint(path)
    peer._trainer = None
    return path


def assert_same(ours, peer):
    batch = make_batch((20, 20))
    with torch.no_grad():
        inputs = ours.prepare_inputs(batch)
        text_BTV, codes_BTKC, _ = ours.heads(ours.hidden_states(inputs))
        theirs = peer(peer.prepare_inputs(dict(batch))["input_embeds"])
    for mine, logits in ((text_BTV, theirs["text_logits"]), (codes_BTKC, theirs["audio_logits"])):
        assert (mine - logits).abs().max() <= RTOL * logits.abs().max()
    answer = ours.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    expected = peer.offline_inference(batch["source_audio"].clone(), batch["source_audio_lens"])
    assert torch.equal(answer["tokens_text"], expected["tokens_text"])
    assert torch.equal(answer["tokens_audio"], expected["tokens_audio"])


@pytest.fixture(scope="module")
def nemo(llm_dir, codec_path):
    return build_nemo(llm_dir, codec_path)


@pytest.fixture(scope="module")
def checkpoint(nemo, tmp_path_factory):
    return save_ckpt(nemo, tmp_path_factory.mktemp("nemo") / "step=1.ckpt")


def test_a_lightning_checkpoint(nemo, checkpoint):
    loaded = DuplexS2SModel.from_nemo(checkpoint)
    assert not loaded.training
    assert_same(loaded, nemo)


def test_a_folder_of_its_save_pretrained(nemo, tmp_path):
    nemo.save_pretrained(str(tmp_path / "folder"))
    assert_same(DuplexS2SModel.from_nemo(tmp_path / "folder"), nemo)


def test_a_folder_with_llm_and_tokenizer_beside(llm_dir, codec_path, tmp_path):
    """NeMo's own export puts them there; what its config names is gone."""
    llm = shutil.copytree(llm_dir, tmp_path / "llm")
    peer = build_nemo(str(llm), codec_path)
    peer.save_pretrained(str(tmp_path / "folder"))
    (tmp_path / "folder" / "llm_backbone").mkdir()
    (llm / "config.json").rename(tmp_path / "folder" / "llm_backbone" / "config.json")
    for file in llm.iterdir():
        file.rename(tmp_path / "folder" / file.name)
    assert_same(DuplexS2SModel.from_nemo(tmp_path / "folder"), peer)


@pytest.mark.parametrize("save", ["ckpt", "folder"])
def test_an_encoder_that_came_from_an_asr(codec_path, tmp_path, save):
    """The config of a run names the ASR and what differs from it; NeMo's folder describes the encoder in full."""
    asr = make_asr(tmp_path / "asr.nemo")
    perception = builders.perception()
    perception["encoder"] = {"att_context_size": [10, 0]}
    del perception["preprocessor"]
    weights = {"pretrained_weights": True, "pretrained_asr": asr, "perception": perception}
    peer = build_nemo(make_family_weights("llama-tinyllama", tmp_path / "llm"), codec_path, **weights)
    path = tmp_path / save
    save_ckpt(peer, path) if save == "ckpt" else peer.save_pretrained(str(path))
    if save == "folder":
        (tmp_path / "asr.nemo").unlink()
    loaded = DuplexS2SModel.from_nemo(path)
    assert loaded.perception.resolved_config()["encoder"]["att_context_size"] == [10, 0]
    assert_same(loaded, peer)


def test_a_checkpoint_in_parts(nemo, checkpoint, tmp_path):
    """The layout of Lightning's ModelParallelStrategy with save_distributed_checkpoint, its default."""
    import torch.distributed.checkpoint as dcp

    whole = torch.load(checkpoint, weights_only=True)
    parts = {"state_dict": whole.pop("state_dict"), "optimizer_0": {"state": {"exp_avg": torch.ones(3)}}}
    dcp.save(parts, checkpoint_id=tmp_path / "parts", no_dist=True)
    torch.save(whole, tmp_path / "parts" / "meta.pt")
    assert_same(DuplexS2SModel.from_nemo(tmp_path / "parts"), nemo)


@pytest.mark.parametrize("save", ["ckpt", "folder"])
def test_tied_embeddings(codec_path, tmp_path, save):
    peer = build_nemo(make_family("qwen2.5", tmp_path / "llm"), codec_path)
    assert peer.lm_head.weight is peer.embed_tokens.weight
    path = tmp_path / save
    save_ckpt(peer, path) if save == "ckpt" else peer.save_pretrained(str(path))
    loaded = DuplexS2SModel.from_nemo(path)
    assert loaded.llm.get_input_embeddings().weight is loaded.llm.get_output_embeddings().weight
    assert_same(loaded, peer)


def test_defect_08_embeddings_that_fsdp_untied_are_loaded_as_trained(codec_path, tmp_path, caplog):
    peer = build_nemo(make_family("qwen2.5", tmp_path / "llm"), codec_path)
    peer.lm_head.weight = torch.nn.Parameter(torch.randn_like(peer.lm_head.weight))
    with caplog.at_level(logging.WARNING):
        loaded = DuplexS2SModel.from_nemo(save_ckpt(peer, tmp_path / "last.ckpt"))
    assert "loaded untied, as trained" in caplog.text
    assert_same(loaded, peer)
    loaded.save_pretrained(tmp_path / "export")
    caplog.clear()
    again = DuplexS2SModel.from_pretrained(tmp_path / "export")
    assert again.llm.config.tie_word_embeddings is False
    assert not caplog.text
    assert_same(again, peer)


def test_bf16_weights_and_their_rounded_codec(nemo, checkpoint, tmp_path):
    whole = torch.load(checkpoint, weights_only=True)
    whole["state_dict"] = {
        name: value.bfloat16() if value.is_floating_point() else value for name, value in whole["state_dict"].items()
    }
    torch.save(whole, tmp_path / "bf16.ckpt")
    loaded = DuplexS2SModel.from_nemo(tmp_path / "bf16.ckpt")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    batch = make_batch((12,))
    assert torch.isfinite(loaded.offline_inference(batch["source_audio"], batch["source_audio_lens"])["audio"]).all()
    whole = DuplexS2SModel.from_nemo(tmp_path / "bf16.ckpt", dtype="float32")
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.float32}


def test_paths_of_another_machine_are_replaced(checkpoint, llm_dir, codec_path, tmp_path):
    whole = torch.load(checkpoint, weights_only=True)
    config = whole["hyper_parameters"]["cfg"]
    config |= {"pretrained_llm": "/theirs/llm", "pretrained_audio_codec": "/theirs/codec.nemo", "speaker_loss": 1}
    torch.save(whole, tmp_path / "theirs.ckpt")
    with pytest.raises(ValueError, match=r"no folder /theirs/llm .*from_nemo\(checkpoint, pretrained_llm=\.\.\."):
        DuplexS2SModel.from_nemo(tmp_path / "theirs.ckpt")
    DuplexS2SModel.from_nemo(tmp_path / "theirs.ckpt", pretrained_llm=llm_dir, pretrained_audio_codec=codec_path)


def test_another_codec_is_refused(checkpoint, tmp_path):
    other = make_codec(tmp_path / "other.nemo", num_codebooks=3)
    with pytest.raises(ValueError, match=r"isn't the codec that .* was trained with: audio_codec\.\w+.* differs"):
        DuplexS2SModel.from_nemo(checkpoint, pretrained_audio_codec=other)
    whole = torch.load(checkpoint, weights_only=True)
    name = next(name for name in whole["state_dict"] if name.startswith("audio_codec.audio_decoder."))
    whole["state_dict"][name] = whole["state_dict"][name] + 0.1
    torch.save(whole, tmp_path / "tuned.ckpt")
    with pytest.raises(ValueError, match=f"{re.escape(name)} differs"):
        DuplexS2SModel.from_nemo(tmp_path / "tuned.ckpt")


def test_weights_that_are_left_over_or_missing_are_named(checkpoint, llm_dir, tmp_path):
    whole = torch.load(checkpoint, weights_only=True)
    whole["state_dict"]["speaker.weight"] = torch.ones(2)
    del whole["state_dict"]["audio_head.bias"]
    torch.save(whole, tmp_path / "odd.ckpt")
    with pytest.raises(ValueError, match=r"checkpoint \(1\): audio_head\.bias; unknown .*: speaker\.weight"):
        DuplexS2SModel.from_nemo(tmp_path / "odd.ckpt")
    wide = shutil.copytree(llm_dir, tmp_path / "wide")
    path = wide / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 96}))
    with pytest.raises(ValueError, match=r"mlp\.gate_proj\.weight is \[64, 32\] in the checkpoint, \[96, 32\] in"):
        DuplexS2SModel.from_nemo(checkpoint, pretrained_llm=str(wide))


class Stranger:
    """An object that only a trusted pickle may hold."""


def test_objects_in_a_checkpoint_need_trust(nemo, checkpoint, tmp_path):
    torch.save(torch.load(checkpoint, weights_only=True) | {"stranger": Stranger()}, tmp_path / "objects.ckpt")
    with pytest.raises(ValueError, match=r"holds Python objects.*trusted=True"):
        DuplexS2SModel.from_nemo(tmp_path / "objects.ckpt")
    assert_same(DuplexS2SModel.from_nemo(tmp_path / "objects.ckpt", trusted=True), nemo)


def test_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        DuplexS2SModel.from_nemo(tmp_path / "none.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        DuplexS2SModel.from_nemo(tmp_path / "cut.ckpt")
    torch.save({"weights": {}}, tmp_path / "other.ckpt")
    with pytest.raises(
        ValueError, match=r"needs a state_dict and hyper_parameters\.cfg, and holds weights\. .*hatch run train:export"
    ):
        DuplexS2SModel.from_nemo(tmp_path / "other.ckpt")


def test_what_other_functions_load_is_refused_by_name(checkpoint, codec_path, tmp_path):
    DuplexS2SModel.from_nemo(checkpoint).save_pretrained(tmp_path / "export")
    with pytest.raises(ValueError, match=r"of this project's save_pretrained: use from_pretrained\('.*/export'\)"):
        DuplexS2SModel.from_nemo(tmp_path / "export")
    with pytest.raises(ValueError, match=r"is a \.nemo archive: from_nemo reads Lightning's \.ckpt and folders"):
        DuplexS2SModel.from_nemo(codec_path)


def test_a_tokenizer_without_pad_is_padded_as_nemo_does_it(codec_path, tmp_path):
    llm = make_llm(tmp_path / "llm")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = tmp_path / "llm" / name
        if path.exists():
            tokens = json.loads(path.read_text())
            tokens.pop("pad_token", None)
            path.write_text(json.dumps(tokens))
    peer = build_nemo(llm, codec_path)
    loaded = DuplexS2SModel.from_nemo(save_ckpt(peer, tmp_path / "last.ckpt"))
    assert loaded.tokenizer.pad_id == peer.text_pad_id
    assert_same(loaded, peer)
