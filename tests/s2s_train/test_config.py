import inspect
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from s2s_train.config import AppConfig, ConfigError, load_config
from s2s_train.config_errors import as_yaml
from s2s_train.trainer_config import TrainerConfig

TINY = """\
model:
  pretrained_llm: llm
  pretrained_audio_codec: codec.nemo
data:
  train_ds:
    shar_path: corpus
    batch_size: 2
trainer:
  max_steps: 10
"""


def write(folder: Path, text: str, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_sections_defaults_and_overrides(tmp_path):
    cfg = load_config(write(tmp_path, TINY), ["trainer.max_steps=20", "model.optimizer.lr=1e-3", "name=try"])
    assert (cfg.name, cfg.trainer.max_steps, cfg.data.train_ds.shar_path) == ("try", 20, "corpus")
    assert cfg.model.optimizer == {"_target_": "torch.optim.AdamW", "lr": 1e-3}
    assert cfg.data.frame_length == 0.08


@pytest.mark.parametrize(
    ("overrides", "lora"),
    [
        (["model.lora={r: 4}"], {"r": 4}),
        (["model.lora.r=4", "model.lora.lora_alpha=8"], {"r": 4, "lora_alpha": 8}),
        (["model.lora={r: 4}", "model.lora={lora_alpha: 8}"], {"r": 4, "lora_alpha": 8}),
        (["model.lora.loftq_config.loftq_bits=4"], {"loftq_config": {"loftq_bits": 4}}),
        (["model.lora.r=4", "model.lora=null"], None),
        (["model.lora=null", "model.lora.r=4"], {"r": 4}),
    ],
)
def test_overrides_open_a_section_that_is_null(tmp_path, overrides, lora):
    path = write(tmp_path, TINY)
    assert load_config(path).model.lora is None
    assert load_config(path, overrides).model.lora == lora


def test_overrides_of_other_null_values(tmp_path):
    scheduler = "{_target_: torch.optim.lr_scheduler.LinearLR, total_iters: 3}"
    overrides = [
        f"model.lr_scheduler={scheduler}",
        "model.lr_scheduler.total_iters=5",
        "data.train_ds.bucket_batch_size=[4, 2]",
        "data.train_ds.bucket_duration_bins=[3.5, 7]",
        "data.train_ds.use_bucketing=true",
        "trainer.max_epochs=2",
    ]
    cfg = load_config(write(tmp_path, TINY), overrides)
    assert cfg.model.lr_scheduler == {"_target_": "torch.optim.lr_scheduler.LinearLR", "total_iters": 5}
    assert (cfg.data.train_ds.bucket_batch_size, cfg.data.train_ds.bucket_duration_bins) == ([4, 2], [3.5, 7])
    assert cfg.trainer.max_epochs == 2


def test_an_override_mends_a_broken_interpolation(tmp_path):
    broken = TINY + "  val_check_interval: ${trainer.limit_train_batch}\n"
    assert load_config(write(tmp_path, broken), ["trainer.val_check_interval=7"]).trainer.val_check_interval == 7


def test_trainer_keys_and_defaults_are_lightnings():
    signature = inspect.signature(Trainer.__init__).parameters
    assert {field.name: field.default for field in fields(TrainerConfig)} == {
        name: parameter.default for name, parameter in signature.items() if name != "self"
    }


def test_a_typo_is_told_with_path_line_and_the_nearest_key(tmp_path):
    text = error_of(tmp_path, TINY.replace("max_steps", "max_step"))
    assert text == f"{tmp_path}/tiny.yaml:9: unknown key trainer.max_step: did you mean trainer.max_steps?"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("trainer.max_stepz=3", "unknown key trainer.max_stepz: did you mean trainer.max_steps?"),
        ("data.train_ds.batchsize=3", "unknown key data.train_ds.batchsize: did you mean data.train_ds.batch_size?"),
        (
            "model.token_loss_weight={padding: 0.3}",
            "unknown key model.token_loss_weight.padding: did you mean model.token_loss_weight.pad?",
        ),
        ("trainer={max_stepz: 3}", "unknown key trainer.max_stepz: did you mean trainer.max_steps?"),
        ("trainer={max_steps: many}", "trainer.max_steps: Value 'many' of type 'str' could not be converted"),
        ("trainer.max_epochs.most=3", "trainer.max_epochs"),
        ("trainer.max_epochs={most: 3}", "trainer.max_epochs"),
        ("trainr.max_steps=3", "unknown key trainr.max_steps: did you mean trainer?"),
        ("batch_duration=3", "unknown key batch_duration: did you mean data.train_ds.batch_duration?"),
        ("exp_manager.checkpoint_callback_params.monitr=x", "checkpoint_callback_params.monitor?"),
        ("trainer.max_steps=many", "trainer.max_steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("trainer.max_steps", "override 'trainer.max_steps' isn't key=value"),
        ("+trainer.max_steps=1", "isn't key=value"),
        ("model.freeze_params=[a", "not valid YAML"),
    ],
)
def test_a_wrong_override_is_told(tmp_path, bad, told):
    text = error_of(tmp_path, TINY, bad)
    assert told in text
    assert bad.split("=")[0] in text


def test_a_typo_in_a_named_validation_set_is_told(tmp_path):
    bad = TINY.replace("trainer:", "  validation_ds:\n    batch_size: 1\n    datasets: {dev: {shar_pth: x}}\ntrainer:")
    with pytest.raises(ValueError, match=r"data\.validation_ds\.datasets\.dev.*'shar_pth'.*'shar_path'"):
        load_config(write(tmp_path, bad))


def test_values_still_to_be_given_are_named_with_their_line(tmp_path):
    listed = TINY.replace("shar_path: corpus", "input_cfg: [{type: lhotse_shar, shar_path: '???'}]")
    text = error_of(tmp_path, listed)
    assert "tiny.yaml:6: data.train_ds.input_cfg[0].shar_path still to be given" in text
    cfg = load_config(write(tmp_path, listed), ["data.train_ds.input_cfg.0.shar_path=here"])
    assert cfg.data.train_ds.input_cfg == [{"type": "lhotse_shar", "shar_path": "here"}]


def test_a_key_without_default_is_named(tmp_path):
    text = error_of(tmp_path, TINY.replace("  pretrained_llm: llm\n", ""))
    assert "model.pretrained_llm still to be given" in text


def test_interpolations_follow_overrides_and_broken_ones_are_told(tmp_path):
    linked = TINY + "  val_check_interval: ${trainer.limit_train_batches}\n  limit_train_batches: 100\n"
    assert load_config(write(tmp_path, linked), ["trainer.limit_train_batches=7"]).trainer.val_check_interval == 7
    broken = error_of(tmp_path, TINY + "  val_check_interval: ${trainer.limit_train_batch}\n")
    assert "tiny.yaml:10: trainer.val_check_interval" in broken
    assert "limit_train_batch" in broken


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1\nb: 2", "line 2: not valid YAML"),
        ("- a\n- b\n", "has to be a mapping of keys"),
        ("", "still to be given"),
    ],
)
def test_files_that_are_no_config(tmp_path, text, told):
    assert told in error_of(tmp_path, text)


def test_a_missing_file_is_told_with_the_one_like_it(tmp_path):
    write(tmp_path, TINY, "demo.yaml")
    with pytest.raises(FileNotFoundError, match=r"no config file .*/dmo\.yaml: did you mean .*/demo\.yaml\?"):
        load_config(tmp_path / "dmo.yaml")


@pytest.mark.parametrize("where", ["model.optimizer", "trainer.strategy", "model.perception.modality_adapter"])
def test_targets_outside_the_known_packages_are_refused(tmp_path, where):
    with pytest.raises(ValueError, match=rf"{where}\._target_: 'os\.system' isn't in a package"):
        load_config(write(tmp_path, TINY), [f"{where}={{_target_: os.system}}"])


def test_the_written_config_loads_again_to_the_same(tmp_path):
    cfg = load_config(write(tmp_path, TINY), ["name=again"])
    again = load_config(write(tmp_path, as_yaml(cfg), "again.yaml"))
    assert again == cfg
    assert isinstance(again, AppConfig)


# Every key of NeMo's examples/speechlm2/conf/s2s_duplex.yaml, with its value where it has a say here
NEMO = """\
model:
  pretrained_llm: TinyLlama/TinyLlama_v1.1
  pretrained_audio_codec: codec.nemo
  pretrained_asr: stt_en_fastconformer_hybrid_large_streaming_80ms
  scoring_asr: stt_en_fastconformer_transducer_large
  pretrained_weights: True
  freeze_params: ["^audio_codec\\\\..+$"]
  prevent_freeze_params: []
  audio_loss_weight: 4
  text_loss_weight: 3
  perception:
    target: nemo.collections.speechlm2.modules.perception.AudioPerceptionModule
    modality_adapter: {_target_: nemo.collections.asr.modules.ConformerEncoder, feat_in: 512, n_layers: 2}
  optimizer: {_target_: torch.optim.AdamW, lr: 3e-4, betas: [0.9, 0.98], weight_decay: 0, foreach: true}
  lr_scheduler:
    _target_: nemo.core.optim.lr_scheduler.CosineAnnealing
    warmup_steps: 0
    min_lr: 1e-6
    max_steps: ${trainer.max_steps}
trainer:
  devices: -1
  accelerator: gpu
  num_nodes: 1
  precision: bf16-true
  logger: False
  enable_checkpointing: False
  use_distributed_sampler: False
  max_steps: 1000000
  limit_train_batches: 100
  val_check_interval: ${trainer.limit_train_batches}
  limit_val_batches: 10
  log_every_n_steps: 10
  num_sanity_val_steps: 1
  gradient_clip_val: 1.0
  accumulate_grad_batches: 1
  strategy:
    _target_: lightning.pytorch.strategies.DDPStrategy
    gradient_as_bucket_view: true
    find_unused_parameters: true
data:
  frame_length: 0.08
  source_sample_rate: 16000
  target_sample_rate: 22050
  input_roles: ["user", "User"]
  output_roles: ["agent", "Assistant"]
  train_ds:
    sample_rate: ${data.target_sample_rate}
    input_cfg: [{type: lhotse_shar, shar_path: '???'}]
    seed: 42
    shard_seed: "randomized"
    num_workers: 2
    batch_size: null
    batch_duration: 100
    bucket_duration_bins: [8.94766,10.1551,11.64118,19.30376,42.85]
    use_bucketing: true
    num_buckets: 5
    bucket_buffer_size: 5000
  validation_ds:
    datasets: {val_set_0: {shar_path: '???'}}
    sample_rate: ${data.target_sample_rate}
    batch_size: 1
    seed: 42
    shard_seed: "randomized"
exp_manager:
  exp_dir: null
  explicit_log_dir: s2s_results/
  name: speechlm2
  create_tensorboard_logger: false
  create_checkpoint_callback: true
  use_datetime_version: true
  max_time_per_run: 00:03:50:00
  resume_from_checkpoint: null
  resume_if_exists: true
  resume_ignore_no_checkpoint: true
  create_wandb_logger: false
  wandb_logger_kwargs: {name: development-run, project: speechlm2, resume: true}
  checkpoint_callback_params:
    filename: "{step}"
    monitor: val_asr_bleu
    mode: max
    every_n_train_steps: null
    every_n_epochs: 1
    save_top_k: 1
    always_save_nemo: false
    save_nemo_on_train_end: false
"""


def test_nemos_s2s_duplex_yaml_loads_with_only_its_blanks_filled(tmp_path):
    path = write(tmp_path, NEMO)
    with pytest.raises(ConfigError, match=r"val_set_0\.shar_path.*still to be given"):
        load_config(path, ["data.train_ds.input_cfg.0.shar_path=a"])
    cfg = load_config(
        path, ["data.train_ds.input_cfg.0.shar_path=a", "data.validation_ds.datasets.val_set_0.shar_path=b"]
    )
    assert cfg.trainer.val_check_interval == 100
    assert cfg.model.lr_scheduler is not None
    assert cfg.model.lr_scheduler["max_steps"] == 1000000
    assert cfg.exp_manager.max_time_per_run == "00:03:50:00"
    saved = yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    assert saved["exp_manager"]["checkpoint_callback_params"]["monitor"] == "val_asr_bleu"
