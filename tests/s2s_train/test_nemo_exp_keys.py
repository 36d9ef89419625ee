"""Every key of NeMo's exp_manager works here, or is answered in one line."""

import logging
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from s2s_train.config import ConfigError, load_config
from s2s_train.exp_config import CheckpointParams, ExpConfig
from s2s_train.nemo_exp_keys import NEMO_KEYS

CONFIG_PAGE = Path(__file__).parents[2] / "docs/config.md"


def write(folder: Path, **exp_manager: Any) -> Path:
    path = folder / "run.yaml"
    model = {"pretrained_llm": "llm", "pretrained_audio_codec": "codec"}
    path.write_text(yaml.safe_dump({"model": model, "exp_manager": exp_manager}))
    return path


def nemos_keys() -> dict[str, Any]:
    """Each key of NeMo's with its default there."""
    from nemo.utils.exp_manager import CallbackParams, ExpManagerConfig

    keys: dict[str, Any] = {}
    for item in fields(ExpManagerConfig):
        value = getattr(ExpManagerConfig(), item.name)
        keys[item.name] = OmegaConf.to_container(OmegaConf.structured(value)) if is_dataclass(value) else value
    keys.pop("checkpoint_callback_params")
    of_checkpoints = {item.name: getattr(CallbackParams(), item.name) for item in fields(CallbackParams)}
    return keys | {f"checkpoint_callback_params.{name}": value for name, value in of_checkpoints.items()}


def ours() -> set[str]:
    of_checkpoints = {f"checkpoint_callback_params.{item.name}" for item in fields(CheckpointParams)}
    return {item.name for item in fields(ExpConfig)} | of_checkpoints


def test_every_key_of_nemos_is_known_and_in_the_docs():
    page = CONFIG_PAGE.read_text()
    for key in nemos_keys():
        assert key in ours() or key in NEMO_KEYS, key
        assert f"`{key.removeprefix('checkpoint_callback_params.')}`" in page, key
    assert not ours() & NEMO_KEYS.keys(), "a key that works needs no word of why it doesn't"


def test_a_file_with_nemos_own_defaults_loads(tmp_path, caplog):
    section = OmegaConf.create()
    for key, value in nemos_keys().items():
        if key in NEMO_KEYS:
            OmegaConf.update(section, key, _plain(value))
    with caplog.at_level(logging.WARNING):
        load_config(write(tmp_path, **OmegaConf.to_container(section)))
    assert not caplog.records


def _plain(value: Any) -> Any:
    return (
        {key: str(each) for key, each in value.items()} if isinstance(value, dict) and "rank" in str(value) else value
    )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("create_mlflow_logger", True, "use create_wandb_logger"),
        ("create_neptune_logger", True, "create_csv_logger"),
        ("ema", {"enable": True}, "means of the weights"),
        ("files_to_copy", ["a.py"], "environment.json"),
        ("create_straggler_detection_callback", True, "isn't supported"),
        ("resume_past_end", True, "raise trainer.max_steps"),
    ],
)
def test_what_a_run_would_lack_is_refused_with_what_to_use_instead(tmp_path, key, value, told):
    path = write(tmp_path, **{key: value})
    with pytest.raises(ConfigError, match=rf"run\.yaml:\d+: exp_manager\.{key} is .*{told}"):
        load_config(path)
    with pytest.raises(ConfigError, match=rf"override .*exp_manager\.{key} is .*{told}"):
        load_config(write(tmp_path), [f"exp_manager.{key}={value}"])


def test_keys_of_checkpoints_and_of_a_whole_section_are_answered_too(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint_callback_params\.dirpath is 'x'.*exp_dir"):
        load_config(write(tmp_path), ["exp_manager.checkpoint_callback_params={dirpath: x, save_top_k: 2}"])
    cfg = load_config(write(tmp_path), ["exp_manager.checkpoint_callback_params={verbose: false, save_top_k: 2}"])
    assert cfg.exp_manager.checkpoint_callback_params.save_top_k == 2
    assert load_config(write(tmp_path), ["exp_manager.ema.enable=false"]).exp_manager == ExpConfig()
    with pytest.raises(ConfigError, match=r"unknown key exp_manager\.seconds_to_slep"):
        load_config(write(tmp_path), ["exp_manager.seconds_to_slep=3"])


def test_what_has_no_effect_is_told_in_one_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(write(tmp_path, version="v2", disable_validation_on_resume=False, seconds_to_sleep=3))
    (record,) = caplog.records
    assert "exp_manager.version" in record.message
    assert "exp_manager.disable_validation_on_resume" in record.message
    assert "seconds_to_sleep" not in record.message
