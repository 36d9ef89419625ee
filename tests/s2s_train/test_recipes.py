"""Every recipe of apps/train/conf: loaded, its arguments checked, its model built without data and laid out on GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from s2s_data.blend import parse_blend
from s2s_model.targets import instantiate
from s2s_train.config import AppConfig, load_config
from s2s_train.free_sections import check_free_sections
from s2s_train.plan import Plan, PlanArgs, make_plan
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.families import make_config
from tests.s2s_model.perception_builders import published_shape

CONF = Path(__file__).parents[2] / "apps/train/conf"
CODEC = "4x4032"  # of the NanoCodec of 0.6 kbps
DATA = ["data.train_ds.input_cfg.0.shar_path=/data/train", "data.validation_ds.datasets.val.shar_path=/data/val"]

LLAMA_8B = {
    "class_name": "LlamaConfig",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SHAPES: dict[str, dict[str, Any]] = {
    "s2s_tinyllama_repro": {
        "class_name": "LlamaConfig",
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "llama3": LLAMA_8B,
    "lora": LLAMA_8B,
    "gemma": {
        "class_name": "Gemma2Config",
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    },
    "qwen2.5": {
        "class_name": "Qwen2Config",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    "30b_fsdp2": {
        "class_name": "Qwen3Config",
        "vocab_size": 151936,
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
BILLIONS = {"s2s_tinyllama_repro": 1.1, "llama3": 8.0, "lora": 8.0, "gemma": 2.6, "qwen2.5": 7.6, "30b_fsdp2": 32.8}
# Not trained by these tests of the app's own: NeMo's keys, with models named by it; and the demo, which the docs run.
OTHERS = {"base", "train_icfg", "s2s_duplex", "demo"}


def llm_of(recipe: str, folder: Path) -> str:
    """A folder with the config.json of the recipe's LLM, which is all that its shape takes."""
    shape = dict(SHAPES[recipe])
    architecture = shape["class_name"].replace("Config", "ForCausalLM")
    make_config(**shape, architectures=[architecture]).save_pretrained(folder)
    return str(folder)


def at_hand(recipe: str, folder: Path) -> list[str]:
    """What stands in for names of the hub: the LLM's and the encoder's shapes, written out."""
    perception = published_shape()
    return [
        f"model.pretrained_llm={llm_of(recipe, folder)}",
        "model.pretrained_asr=null",
        f"model.perception.preprocessor={json.dumps(perception['preprocessor'])}",
        f"model.perception.encoder={json.dumps(perception['encoder'])}",
    ]


def plan_of(recipe: str, folder: Path) -> tuple[AppConfig, Plan]:
    cfg = load_config(CONF / f"{recipe}.yaml", [*DATA, *at_hand(recipe, folder)])
    world_size = None if isinstance(cfg.trainer.devices, int) and cfg.trainer.devices > 0 else 8
    return cfg, make_plan(cfg, PlanArgs(world_size=world_size, codec=CODEC))


def test_every_file_is_a_recipe_that_is_tested_or_known():
    assert {path.stem for path in CONF.glob("*.yaml")} == {*SHAPES, *OTHERS}


@pytest.mark.parametrize("recipe", SHAPES)
def test_a_recipe_is_built_without_data_and_fits_gpus_of_80_gb(recipe, tmp_path):
    cfg, plan = plan_of(recipe, tmp_path)
    assert plan.gpu.name == "h100-80gb"
    assert plan.configured.usable, (plan.configured.refused, plan.configured.memory)
    counts = {part.name: part for part in plan.sizes.parts}
    of_llm = sum(part.total for name, part in counts.items() if "text" in name or name == "llm") / 1e9
    adapters = 0.05 if cfg.model.lora else 0.0
    assert of_llm == pytest.approx(BILLIONS[recipe] + adapters, rel=0.02)
    assert counts["audio head"].trained.total == plan.sizes.llm_config.hidden_size * 4 * (4032 + 3) + 4 * (4032 + 3)
    trained = counts["llm"].trained.total / counts["llm"].total
    assert trained < 0.02 if cfg.model.lora else trained == 1


@pytest.mark.parametrize("recipe", SHAPES)
def test_a_recipe_s_classes_take_its_arguments(recipe):
    cfg = load_config(CONF / f"{recipe}.yaml", DATA)
    check_free_sections(cfg)
    instantiate(cfg.trainer.strategy, "trainer.strategy", base=object)
    weight = torch.nn.Linear(1, 1)
    optimizer = instantiate(cfg.model.optimizer, "model.optimizer", base=object, params=list(weight.parameters()))
    assert cfg.model.lr_scheduler is not None
    scheduler = instantiate(cfg.model.lr_scheduler, "model.lr_scheduler", base=object, optimizer=optimizer)
    rates = []
    for _ in range(2501):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates[0] < rates[1000] < rates[2498], "it warms up"
    assert max(rates) == pytest.approx(float(cfg.model.optimizer["lr"]), rel=0.01)


def test_the_paper_s_recipe_has_the_paper_s_numbers():
    cfg = load_config(CONF / "s2s_tinyllama_repro.yaml", DATA)
    assert (cfg.model.audio_loss_weight, cfg.model.text_loss_weight) == (4, 3)
    assert (cfg.data.frame_length, cfg.model.delay_speech_channel_by) == (0.08, 1)
    assert "12.5fps" in cfg.model.pretrained_audio_codec
    assert "streaming_80ms" in str(cfg.model.pretrained_asr)
    assert cfg.model.lr_scheduler is not None
    assert cfg.model.lr_scheduler["max_steps"] == cfg.trainer.max_steps


def test_what_still_has_to_be_given_is_named():
    with pytest.raises(ValueError, match=r"base\.yaml:\d+: data\.train_ds\.input_cfg\[0\]\.shar_path.*still to be"):
        load_config(CONF / "llama3.yaml")


def test_the_blend_goes_with_any_recipe(tmp_path, monkeypatch):
    for name in ("dialogues", "qa_short", "qa_long"):
        write_shar(tmp_path / name, dialogues(name, 2))
    monkeypatch.setenv("DATA", str(tmp_path))
    overrides = [f"data.train_ds.input_cfg={CONF / 'train_icfg.yaml'}", DATA[1]]
    train = load_config(CONF / "llama3.yaml", overrides).data.train_ds
    blend = parse_blend("data.train_ds", input_cfg=train.input_cfg)
    assert [leaf.weight for leaf in blend.leaves] == pytest.approx([0.5, 0.3, 0.1, 0.1])
