"""A saved model is the model: the same logits bit for bit, from a folder that needs nothing else."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from s2s_model import DuplexS2SModel
from s2s_model.lora import merge_lora
from s2s_model.pretrained import save
from tests.s2s_model.builders import make_batch, make_codec, model_config
from tests.s2s_model.families import make_family


def build(config):
    """A model whose every tensor is its own: fresh adapters are zeros."""
    torch.manual_seed(0)
    model = DuplexS2SModel(config).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@torch.no_grad()
def logits(model):
    return [x for x in model.heads(model.hidden_states(model.prepare_inputs(make_batch((20, 20))))) if x is not None]


def assert_same(first, second):
    for ours, theirs in zip(logits(first), logits(second), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.fixture
def tied(codec_path, tmp_path):
    """The config of a model whose LLM has one matrix for embedding and head."""
    return model_config(make_family("qwen2.5", tmp_path / "tied"), codec_path)


@pytest.fixture
def export(model, tmp_path):
    model.save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def edit(path: Path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_folder_without_pickle_that_needs_nothing_else(codec_path, tmp_path):
    parts = tmp_path / "parts"
    config = model_config(make_family("qwen3", parts), shutil.copy(codec_path, parts / "codec.nemo"))
    model = build(config)
    model.save_pretrained(tmp_path / "export")
    shutil.rmtree(parts)
    moved = (tmp_path / "export").rename(tmp_path / "moved")
    files = {str(path.relative_to(moved)) for path in moved.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "llm/config.json", "llm/tokenizer.json"} < files
    assert {"codec/config.json", "codec/model.safetensors"} < files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert {path.stat().st_mode & 0o777 for path in moved.rglob("*.*")} == {
        (moved / "config.json").stat().st_mode & 0o777
    }
    loaded = DuplexS2SModel.from_pretrained(moved)
    assert not loaded.training
    assert_same(loaded, model)
    batch = make_batch((12,))
    ours, theirs = (m.offline_inference(batch["source_audio"], batch["source_audio_lens"]) for m in (loaded, model))
    assert torch.equal(ours["audio"], theirs["audio"])
    assert ours["text"] == theirs["text"]


def test_tied_embeddings_stay_tied_and_untied_ones_apart(tied, model, tmp_path):
    model.save_pretrained(tmp_path / "untied")
    loaded = DuplexS2SModel.from_pretrained(tmp_path / "untied")
    assert loaded.llm.get_input_embeddings().weight is not loaded.llm.get_output_embeddings().weight
    assert_same(loaded, model)
    model = build(tied)
    model.save_pretrained(tmp_path / "tied_export")
    loaded = DuplexS2SModel.from_pretrained(tmp_path / "tied_export")
    assert loaded.llm.get_input_embeddings().weight is loaded.llm.get_output_embeddings().weight
    assert_same(loaded, model)


def test_the_user_text_head(config, tmp_path):
    model = build(config | {"predict_user_text": True})
    torch.nn.init.normal_(model.asr_head.weight)
    model.save_pretrained(tmp_path / "export")
    assert_same(DuplexS2SModel.from_pretrained(tmp_path / "export"), model)


def test_adapters_are_saved_as_they_are_and_go_on_training(tied, tmp_path):
    model = build(tied | {"lora": {"r": 2}, "freeze_params": [r"^llm\..+base_layer.+$"]})
    model.save_pretrained(tmp_path / "export")
    loaded = DuplexS2SModel.from_pretrained(tmp_path / "export")
    assert_same(loaded, model)
    trained = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("lora_" in name for name in trained)


def test_merged_adapters_are_gone(tied, tmp_path):
    model = build(tied | {"lora": {"r": 2}, "freeze_params": [r"^llm\..+base_layer.+$", r"^perception\."]})
    before = logits(model)
    merge_lora(model.llm)
    model.save_pretrained(tmp_path / "export")
    loaded = DuplexS2SModel.from_pretrained(tmp_path / "export")
    assert not any("lora" in name for name in loaded.state_dict())
    assert loaded.cfg.lora is None
    assert loaded.cfg.freeze_params == [r"^perception\."]
    assert_same(loaded, model)
    for merged, apart in zip(logits(loaded), before, strict=True):
        torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-5)


def test_every_dtype_is_kept_or_all_are_brought_to_one(model, tmp_path):
    model.llm.to(torch.bfloat16)
    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    assert len(set(dtypes.values())) > 1
    model.save_pretrained(tmp_path / "mixed")
    mixed = DuplexS2SModel.from_pretrained(tmp_path / "mixed")
    assert {name: value.dtype for name, value in mixed.state_dict().items()} == dtypes
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert_same(DuplexS2SModel.from_pretrained(tmp_path / "half"), model)
    whole = DuplexS2SModel.from_pretrained(tmp_path / "half", dtype="float32")
    assert {x.dtype for x in logits(whole)} == {torch.float32}
    with pytest.raises(ValueError, match="dtype is 'int8': use one of float32, bfloat16, float16"):
        DuplexS2SModel.from_pretrained(tmp_path / "half", dtype="int8")


def test_large_models_are_in_several_files(model, tmp_path):
    save(model, tmp_path / "export", max_shard_size="100KB")
    assert len(list((tmp_path / "export").glob("model-*-of-*.safetensors"))) > 1
    assert_same(DuplexS2SModel.from_pretrained(tmp_path / "export"), model)
    next((tmp_path / "export").glob("model-00002-*")).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model-00002-of-.*isn't whole"):
        DuplexS2SModel.from_pretrained(tmp_path / "export")


def test_without_the_codec_it_is_taken_from_elsewhere_and_must_be_the_same(config, tmp_path):
    config["pretrained_audio_codec"] = str(shutil.copy(config["pretrained_audio_codec"], tmp_path / "codec.nemo"))
    model = build(config)
    model.save_pretrained(tmp_path / "export", with_codec=False)
    assert not (tmp_path / "export" / "codec").exists()
    assert_same(DuplexS2SModel.from_pretrained(tmp_path / "export"), model)
    moved = shutil.copy(config["pretrained_audio_codec"], tmp_path / "moved.nemo")
    assert_same(DuplexS2SModel.from_pretrained(tmp_path / "export", pretrained_audio_codec=str(moved)), model)
    Path(config["pretrained_audio_codec"]).rename(tmp_path / "gone.nemo")
    with pytest.raises(ValueError, match=r"no file .*was saved without its codec: give .*pretrained_audio_codec="):
        DuplexS2SModel.from_pretrained(tmp_path / "export")
    other = make_codec(tmp_path / "other.nemo", num_codebooks=3)
    with pytest.raises(ValueError, match=rf"whose fingerprint is nemo-\w+, but .* with {model.codec_fingerprint}"):
        DuplexS2SModel.from_pretrained(tmp_path / "export", pretrained_audio_codec=other)


def test_a_name_of_the_hub(model, tmp_path, monkeypatch):
    """From the hub's cache, as `snapshot_download` leaves it: there is no network here."""
    import huggingface_hub.constants as hub

    repository = tmp_path / "cache" / "models--someone--duplex"
    model.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    assert_same(DuplexS2SModel.from_pretrained("someone/duplex"), model)
    with pytest.raises(
        FileNotFoundError, match=r"no model at 'someone/other': it is no folder .* hub gives none .*download it"
    ):
        DuplexS2SModel.from_pretrained("someone/other")


def test_an_export_is_replaced_and_anything_else_left_alone(model, export, tmp_path):
    (export / "notes.txt").write_text("of the old one")
    model.save_pretrained(export)
    assert not (export / "notes.txt").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"mine exists and is no export of a model"):
        model.save_pretrained(mine)
    assert [path.name for path in mine.iterdir()] == ["config.json"]


def test_a_save_that_fails_leaves_what_was_there(model, export, tmp_path):
    before = {path: path.read_bytes() for path in export.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk
    try:
        for target in (export, tmp_path / "new"):
            with pytest.raises(OSError, match="File too large"):
                model.save_pretrained(target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in export.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"export"}


def test_sharded_weights_are_refused(model, tmp_path):
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model.audio_head, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"audio_head\.weight is sharded over devices: save a checkpoint"):
            model.save_pretrained(tmp_path / "export")
    finally:
        dist.destroy_process_group()
    assert not any(tmp_path.iterdir())


def test_what_does_not_fit_is_named(export):
    edit(export / "llm" / "config.json", num_hidden_layers=3, vocab_size=65)
    with pytest.raises(ValueError, match=r"lm_head.weight is \[64, 32\] in the checkpoint, \[65, 32\] in the model"):
        DuplexS2SModel.from_pretrained(export)
    edit(export / "llm" / "config.json", num_hidden_layers=3, vocab_size=64)
    with pytest.raises(ValueError, match=r"missing in the checkpoint \(9\): llm\.model\.layers\.2\."):
        DuplexS2SModel.from_pretrained(export)


def test_folders_that_are_no_export(export, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"from_pretrained: no folder .*/exprt .*: did you mean .*/export\?$"):
        DuplexS2SModel.from_pretrained(export.with_name("exprt"))
    with pytest.raises(ValueError, match=r"is a file.*\.from_nemo, and a run.* exported by hatch run train:export"):
        DuplexS2SModel.from_pretrained(export / "model.safetensors")
    with pytest.raises(ValueError, match=r"generaton is neither an argument nor a key .* did you mean generation\?"):
        DuplexS2SModel.from_pretrained(export, generaton={})
    weights = (export / "model.safetensors").read_bytes()
    (export / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        DuplexS2SModel.from_pretrained(export)
    edit(export / "config.json", format_version=2)
    with pytest.raises(ValueError, match=r"has format_version 2, this s2s_model reads 1"):
        DuplexS2SModel.from_pretrained(export)
    (export / "config.json").write_text('{"model_type": "nemo_speechlm"}')
    with pytest.raises(ValueError, match=r"what NeMo wrote is loaded by DuplexS2SModel\.from_nemo"):
        DuplexS2SModel.from_pretrained(export)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no config\.json"):
        DuplexS2SModel.from_pretrained(tmp_path / "empty")


def test_keys_of_the_model_section_can_be_set_otherwise(export):
    generation = {"text": {"temperature": 0.7}}
    loaded = DuplexS2SModel.from_pretrained(export, generation=generation, attn_implementation="eager")
    assert loaded.cfg.generation.text.temperature == pytest.approx(0.7)
    assert loaded.llm.config._attn_implementation == "eager"
