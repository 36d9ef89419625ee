"""The recipes of a model that talks: the configs as they are, on tiny stand-ins, two steps long on a CPU."""

import tarfile

import pytest
import torch

from recipes.talk import carry
from s2s_model.codecs import load_codec
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.config import load_config
from s2s_train.free_sections import check_free_sections
from tests.recipes.builders import RECIPES, fit, logged

SETS = ("heldout", "heldout_voice", "heldout_wording")


@pytest.mark.parametrize("recipe", ["talk", "talk_carried", "talk_qwen"])
def test_a_recipe_s_classes_take_its_arguments(recipe, monkeypatch):
    monkeypatch.delenv("TALK", raising=False)
    cfg = load_config(RECIPES / f"{recipe}.yaml")
    check_free_sections(cfg)
    paths = [entry["shar_path"] for entry in cfg.data.train_ds.input_cfg]
    assert paths == ["talk/corpus/train", "talk/text"]
    assert set(cfg.data.validation_ds.datasets) == set(SETS)
    assert cfg.model.perception["encoder"]["att_context_size"] == [70, 0], "it hears nothing ahead"


def test_the_published_codec_is_one_for_the_recipe():
    codec = load_codec(str(RECIPES / "codec.nemo"))
    data = load_config(RECIPES / "talk.yaml").data
    assert (codec.frame_rate, codec.sample_rate) == (1 / data.frame_length, data.target_sample_rate)
    assert codec.fingerprint != load_codec(str(RECIPES.parents[1] / "demo/codec.nemo")).fingerprint


def test_the_published_parts_are_of_the_recipe_the_codec_and_the_encoder_beside_them(monkeypatch):
    monkeypatch.delenv("TALK", raising=False)
    published = load_config(RECIPES / "parts/config.yaml")
    own = load_config(RECIPES / "talk_carried.yaml", ["data.train_ds.num_workers=13"])
    assert (published.name, published.model, published.data) == (own.name, own.model, own.data)
    rest = AtomicCheckpointIO().load_checkpoint(RECIPES / "parts" / carry.REST)
    assert rest["global_step"] == published.trainer.max_steps
    assert rest["codec"] == load_codec(str(RECIPES / "codec.nemo")).fingerprint
    with tarfile.open(RECIPES / "encoder.nemo") as nemo:
        (name,) = [name for name in nemo.getnames() if name.endswith(".ckpt")]
        encoder = torch.load(nemo.extractfile(name), "cpu", weights_only=True)
    frozen = {name: digest for name, digest in rest["frozen"].items() if name.startswith("perception.encoder.")}
    assert len(frozen) > 100
    for name, (dtype, digest) in frozen.items():
        value = encoder[name.removeprefix("perception.")].to(getattr(torch, dtype))
        assert carry.fingerprint(value)[1] == digest, name
    weights = [path for path in (RECIPES / "parts").iterdir() if path.suffix == ".safetensors"]
    assert len(weights) == rest["num_files"]
    assert max(path.stat().st_size for path in weights) <= 16 * carry.MIB


def test_another_llm_is_one_line():
    own, qwen = (load_config(RECIPES / f"{name}.yaml") for name in ("talk", "talk_qwen"))
    assert own.model.pretrained_llm != qwen.model.pretrained_llm
    qwen.model.pretrained_llm, qwen.name = own.model.pretrained_llm, own.name
    assert own == qwen


def test_a_stage_goes_on_where_the_one_before_stopped(in_talk):
    llm = in_talk / "llm"
    whole = fit("talk", llm, "whole")
    assert [*logged(whole, "train_loss")] == [1, 2]
    names = set().union(*whole)
    assert {f"val_loss_{name}" for name in SETS} < names
    assert {"train_user_text_loss", "train_text_loss", "train_audio_loss"} < names
    fit("talk", llm, "staged", "trainer.max_steps=1")
    staged = fit("talk", llm, "staged")
    assert logged(staged, "train_loss") == logged(whole, "train_loss")
    assert logged(staged, "learning_rate") == logged(whole, "learning_rate"), "one schedule over all stages"


@pytest.mark.parametrize("recipe", ["talk_qwen", "talk_carried"])
def test_the_other_recipes_train(recipe, in_talk):
    assert [*logged(fit(recipe, in_talk / "llm", "other"), "train_loss")] == [1, 2]
