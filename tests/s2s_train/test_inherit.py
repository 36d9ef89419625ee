"""Configs that build on other files."""

from pathlib import Path

import pytest

from s2s_train.config import ConfigError, load_config
from s2s_train.config_errors import as_yaml

BASE = """\
model:
  pretrained_llm: llm
  pretrained_audio_codec: codec.nemo
  freeze_params: [a, b]
data:
  train_ds: {input_cfg: [{type: lhotse_shar, shar_path: corpus}], batch_size: 2}
trainer:
  max_steps: 10
  val_check_interval: ${trainer.limit_train_batches}
  limit_train_batches: 5
  strategy: {_target_: lightning.pytorch.strategies.DDPStrategy, gradient_as_bucket_view: true}
"""


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


def test_own_keys_win_over_the_base_and_overrides_over_both(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", base=BASE)
    path = write(tmp_path, mine="inherit: elsewhere/base.yaml\ntrainer: {max_steps: 20, limit_train_batches: 7}\n")
    cfg = load_config(path)
    assert (cfg.trainer.max_steps, cfg.trainer.val_check_interval, cfg.model.pretrained_llm) == (20, 7, "llm")
    assert load_config(path, ["trainer.max_steps=30"]).trainer.max_steps == 30
    again = write(tmp_path / "run", config=as_yaml(cfg))
    assert load_config(again) == cfg, "the written config stands alone"


def test_later_bases_win_and_lists_are_replaced(tmp_path):
    path = write(
        tmp_path,
        mine="inherit: [base.yaml, lora.yaml]\nname: mine\n",
        base=BASE,
        lora="inherit: base.yaml\nmodel: {lora: {r: 8}, freeze_params: [c]}\nname: lora\n",
    )
    cfg = load_config(path)
    assert (cfg.name, cfg.model.lora, cfg.model.freeze_params) == ("mine", {"r": 8}, ["c"])


def test_a_base_that_two_bases_share_does_not_undo_the_first(tmp_path):
    strategy = "strategy: {_target_: s2s_parallel.strategy.MeshStrategy}"
    path = write(
        tmp_path,
        mine="inherit: [model.yaml, data.yaml]\n",
        base=BASE,
        model=f"inherit: base.yaml\nmodel: {{pretrained_llm: another}}\ntrainer: {{{strategy}}}\n",
        data="inherit: base.yaml\ndata: {train_ds: {batch_size: 3}}\n",
    )
    cfg = load_config(path)
    assert (cfg.model.pretrained_llm, cfg.data.train_ds.batch_size) == ("another", 3)
    assert cfg.trainer.strategy == {"_target_": "s2s_parallel.strategy.MeshStrategy"}


def test_another_class_does_not_keep_the_arguments_of_the_bases(tmp_path):
    mesh = "s2s_parallel.strategy.MeshStrategy"
    text = f"inherit: base.yaml\ntrainer: {{strategy: {{_target_: {mesh}, tensor_parallel_size: 2}}}}\n"
    path = write(tmp_path, mine=text, base=BASE)
    assert load_config(path).trainer.strategy == {"_target_": mesh, "tensor_parallel_size": 2}
    whole = f"trainer.strategy={{_target_: {mesh}, tensor_parallel_size: 2}}"
    assert load_config(tmp_path / "base.yaml", [whole]).trainer.strategy == load_config(path).trainer.strategy
    more = "inherit: base.yaml\ntrainer: {strategy: {find_unused_parameters: true}}\n"
    assert load_config(write(tmp_path, more=more)).trainer.strategy == {
        "_target_": "lightning.pytorch.strategies.DDPStrategy",
        "gradient_as_bucket_view": True,
        "find_unused_parameters": True,
    }


def test_an_error_names_the_file_and_line_that_has_the_mistake(tmp_path):
    path = write(tmp_path, mine="inherit: base.yaml\nname: mine\n", base=BASE.replace("max_steps", "max_step"))
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/base\.yaml:8: unknown key trainer\.max_step: did you mean"):
        load_config(path)
    path = write(tmp_path, mine="inherit: base.yaml\n\ntrainer:\n  max_stps: 3\n", base=BASE)
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/mine\.yaml:4: unknown key trainer\.max_stps"):
        load_config(path)
    path = write(tmp_path, mine="inherit: base.yaml\ntrainer: {max_epochs: 3}\n", base=BASE.replace("corpus", "'???'"))
    with pytest.raises(ConfigError, match=r"base\.yaml:6: data\.train_ds\.input_cfg\[0\]\.shar_path still to be given"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"base\.yaml:9: trainer\.val_check_interval.*limit_train_batch"):
        load_config(write(tmp_path, mine="inherit: base.yaml\n", base=BASE.replace("batches}", "batch}")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("inherit: bse.yaml", r"no config file .*bse\.yaml, which .*mine\.yaml inherits: did you mean .*base\.yaml\?"),
        ("inherit: mine.yaml", r"mine\.yaml: a file can't inherit itself: .*mine\.yaml inherits .*mine\.yaml"),
        ("inherit: round.yaml", r"can't inherit itself: .*mine\.yaml inherits .*round\.yaml inherits .*mine\.yaml"),
        ("inherit: 3", r"mine\.yaml:1: inherit is 3: give the path"),
        ("inherit: {a: b}", r"mine\.yaml:1: inherit is .*: give the path"),
        ("name: x\ndefaults: [base]", r"mine\.yaml:2: defaults: is Hydra's.*inherit: base\.yaml"),
    ],
)
def test_what_cannot_be_inherited_is_told_in_one_line(tmp_path, text, told):
    path = write(tmp_path, mine=text, base=BASE, round="inherit: [base.yaml, mine.yaml]")
    with pytest.raises((ConfigError, FileNotFoundError), match=told) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_inherit_is_no_override(tmp_path):
    with pytest.raises(ConfigError, match="a file says what it inherits"):
        load_config(write(tmp_path, base=BASE), ["inherit=other.yaml"])
