"""The data config: NeMo's keys, inheritance of validation sets, errors."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from s2s_data import DataConfig, DataError
from s2s_data.config import as_data_config, validation_sets
from tests.s2s_data.builders import config

NEMO_DATA = """
frame_length: 0.08
source_sample_rate: 16000
target_sample_rate: 22050
input_roles: ["user", "User"]
output_roles: ["agent", "Assistant"]
train_ds:
  sample_rate: ${data.target_sample_rate}
  input_cfg:
    - type: lhotse_shar
      shar_path: ???
  seed: 42
  shard_seed: "randomized"
  num_workers: 2
  batch_size: null
  batch_duration: 100
  bucket_duration_bins: [8.94766, 10.1551, 11.64118, 19.30376, 42.85]
  use_bucketing: true
  num_buckets: 5
  bucket_buffer_size: 5000
validation_ds:
  datasets:
    val_set_0:
      shar_path: ???
  sample_rate: ${data.target_sample_rate}
  batch_size: 1
  seed: 42
  shard_seed: "randomized"
"""


def merged(yaml: str, overrides: list[str]) -> Any:
    root = OmegaConf.create({"data": OmegaConf.structured(DataConfig)})
    return OmegaConf.merge(root, {"data": OmegaConf.create(yaml)}, OmegaConf.from_dotlist(overrides)).data


def test_nemos_file_with_its_blanks_filled_in() -> None:
    overrides = ["data.train_ds.input_cfg=[{type: lhotse_shar, shar_path: /a}]"]
    overrides += ["data.validation_ds.datasets.val_set_0.shar_path=/b"]
    cfg = as_data_config(merged(NEMO_DATA, overrides))
    assert cfg.train_ds.input_cfg == [{"type": "lhotse_shar", "shar_path": "/a"}]
    assert cfg.train_ds.sample_rate == 22050
    assert cfg.train_ds.bucket_duration_bins == [8.94766, 10.1551, 11.64118, 19.30376, 42.85]
    assert list(validation_sets(cfg.validation_ds)) == ["val_set_0"]


def test_a_set_that_is_null_is_left_out_and_with_it_its_blanks() -> None:
    overrides = ["data.train_ds.input_cfg=[{type: lhotse_shar, shar_path: /a}]"]
    overrides += ["data.validation_ds.datasets.mine.shar_path=/b", "data.validation_ds.datasets.val_set_0=null"]
    cfg = as_data_config(merged(NEMO_DATA, overrides))
    assert list(validation_sets(cfg.validation_ds)) == ["mine"]


def test_blank_left_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"still \?\?\?: .*shar_path"):
        as_data_config(merged(NEMO_DATA, []))


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigKeyError, match="batch_duratoin"):
        merged(NEMO_DATA, ["data.train_ds.batch_duratoin=3"])


def test_sets_inherit_and_override() -> None:
    cfg = config(sets={"a": {"shar_path": "/a"}, "b": {"shar_path": "/b", "batch_size": 7, "load_target_audio": False}})
    cfg.validation_ds.max_duration = 30.0
    sets = validation_sets(cfg.validation_ds)
    assert [(s.shar_path, s.batch_size, s.max_duration, s.load_target_audio) for s in sets.values()] == [
        ("/a", 2, 30.0, True),
        ("/b", 7, 30.0, False),
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"shar_pth": "/a"}, r"datasets.a: unknown 'shar_pth': did you mean 'shar_path'"),
        ({"shar_path": "/a", "batch_size": "many"}, "datasets.a: Value 'many'"),
        ({"shar_path": "/a", "batch_size": 0}, "datasets.a.batch_size is 0, but must be above 0"),
        ({"shar_path": "/a", "batch_size": None}, "datasets.a needs batch_size"),
        ({"shar_path": "/a", "shard_seed": "random"}, "datasets.a.shard_seed is 'random', but must be \"randomized\""),
        ("/a", "datasets.a must be a mapping"),
    ],
)
def test_wrong_set_says_where_and_what(overrides: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        validation_sets(config(sets={"a": overrides}).validation_ds)


def test_training_data_needs_a_batch_size() -> None:
    with pytest.raises(DataError, match=r"data.train_ds needs batch_size"):
        as_data_config(config({"shar_path": "/a", "batch_size": None}))


def test_validation_data_needs_a_name() -> None:
    cfg = config()
    cfg.validation_ds.shar_path = "/a"
    with pytest.raises(DataError, match=r"put it under a name"):
        as_data_config(cfg)
