"""The recipes of a model that talks: the configs as they are, on tiny stand-ins, two steps long on a CPU."""

import pytest

from s2s_model.codecs import load_codec
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


def test_the_published_parts_are_a_run_s_of_the_recipe_as_it_is(monkeypatch):
    monkeypatch.delenv("TALK", raising=False)
    published = load_config(RECIPES / "parts/config.yaml")
    own = load_config(RECIPES / "talk_carried.yaml", [f"model.lr_scheduler.max_steps={published.trainer.max_steps}"])
    assert (published.name, published.model, published.data) == (own.name, own.model, own.data)
    sizes = [path.stat().st_size for path in (RECIPES / "parts").iterdir()]
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 64 * 2**20


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
