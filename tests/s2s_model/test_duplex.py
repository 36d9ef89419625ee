import json

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from s2s_model import DuplexS2SModel
from tests.s2s_model.builders import CODEC_RATE, make_batch, make_codec, make_llm, model_config


def test_it_learns_a_dialogue_by_heart_and_answers_it(model):
    """Overfit one dialogue: the free-running answer becomes the reference, text and codes."""
    batch = make_batch((24,))
    batch["target_codes"], batch["target_code_lens"] = model.target_codes(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(150):
        text, audio, num_frames = model.loss_sums(model.prepare_inputs(batch))
        loss = model.weighted(text, audio) / num_frames
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    answer = model.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    assert answer["tokens_text"][0, :23].tolist() == batch["target_tokens"][0, 1:].tolist()
    agreement = (answer["tokens_audio"][0, 1:23] == batch["target_codes"][0, 1:23]).float().mean()
    turn = slice(7, 17)
    assert (answer["tokens_audio"][0, turn] == batch["target_codes"][0, turn]).all(), agreement
    start, end, _ = answer["text_turns"][0][0]
    assert (start, end) == (pytest.approx(0.08 * 6), pytest.approx(0.08 * 18))


def test_one_training_step_and_validation_under_lightning(model, tmp_path):
    batch = make_batch((16, 12))
    trainer = Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    before = model.audio_head.weight.detach().clone()
    trainer.fit(
        model,
        DataLoader([batch], batch_size=None),
        DataLoader([{"seen": batch, "gone": None}], batch_size=None),
    )
    assert not torch.equal(before, model.audio_head.weight)
    metrics = trainer.callback_metrics
    assert metrics["val_loss_seen"].item() == pytest.approx(metrics["val_loss"].item())
    assert torch.isfinite(metrics["val_loss"])


def test_validation_output_carries_the_codecs_own_rate(llm_dir, tmp_path):
    """Defect 9: nothing assumes 22,050 Hz."""
    codec = make_codec(tmp_path / "codec16.nemo", sample_rate=16000, rates=(2, 2, 4, 8, 10))
    model = DuplexS2SModel(model_config(llm_dir, codec)).eval()
    output = model.validation_step({"seen": make_batch((16,), codec_rate=16000)}, 0)["seen"]
    assert model.target_sample_rate == output["sample_rate"] == 16000
    assert output["audio_lens"].item() == output["text_tokens"].shape[1] * 1280
    assert output["ceiling_audio_lens"].item() == 16 * 1280


def test_an_empty_batch_is_passed_over(model):
    from s2s_data.batch import empty_batch

    batch = empty_batch(num_codebooks=2, has_target_audio=True)
    assert model.validation_step({"seen": batch, "gone": None}, 0) == {}


def test_stored_codes_are_used_instead_of_the_codec(model):
    batch = make_batch((16,))
    encoded = model.prepare_inputs(batch)
    stored = {k: v for k, v in batch.items() if not k.startswith("target_audio")}
    stored["target_codes"], stored["target_code_lens"] = model.target_codes(batch)
    assert torch.equal(model.prepare_inputs(stored).code_labels_BTK, encoded.code_labels_BTK)


def test_the_codec_is_neither_trained_nor_saved(model):
    assert not any("codec" in name for name in model.state_dict())
    assert not any("codec" in name for name, _ in model.named_parameters())
    model.to(torch.bfloat16)
    audio = torch.randn(1, CODEC_RATE)
    codes, frames = model.audio_codec.encode(audio.bfloat16(), torch.tensor([CODEC_RATE]))
    assert model.audio_codec.decode(codes, frames)[0].dtype == torch.float32


def test_a_codec_of_another_frame_rate_is_refused_with_both_numbers(llm_dir, tmp_path):
    codec = make_codec(tmp_path / "fast.nemo", rates=(2, 3, 7, 7))
    with pytest.raises(ValueError, match=r"makes 75 frames a second.*asks for 12\.5"):
        DuplexS2SModel(model_config(llm_dir, codec))


def test_an_encoder_of_another_frame_rate_is_refused_with_both_numbers(config):
    config["perception"]["encoder"]["subsampling_factor"] = 4
    with pytest.raises(ValueError, match=r"every 40 ms.*80 ms"):
        DuplexS2SModel(config)


def test_defect_07_a_pad_token_that_is_also_eos_is_refused_and_a_config_key_settles_it(codec_path, tmp_path):
    llm = make_llm(tmp_path / "llm", pad_token="</s>")
    with pytest.raises(ValueError, match=r"'</s>' as pad and as eos.*model\.text_pad_token"):
        DuplexS2SModel(model_config(llm, codec_path))
    model = DuplexS2SModel(model_config(llm, codec_path, text_pad_token="<pad>"))
    assert (model.tokenizer.pad_id, model.tokenizer.bos_id, model.tokenizer.eos_id) == (3, 1, 2)


def test_the_llm_trains_in_float32_whatever_dtype_its_config_names(codec_path, tmp_path):
    llm = make_llm(tmp_path / "llm")
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    model = DuplexS2SModel(model_config(llm, codec_path))
    assert {p.dtype for p in model.llm.parameters()} == {torch.float32}


def test_missing_files_say_which_key(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.pretrained_audio_codec: no file"):
        DuplexS2SModel(config | {"pretrained_audio_codec": str(tmp_path / "no.nemo")})
    with pytest.raises(ValueError, match="no causal LM config"):
        DuplexS2SModel(config | {"tokenizer_path": config["pretrained_llm"], "pretrained_llm": str(tmp_path)})
    with pytest.raises(ValueError, match=r"no tokenizer at .*model\.pretrained_llm names"):
        DuplexS2SModel(config | {"pretrained_llm": str(tmp_path)})
    (tmp_path / "cut.nemo").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=r"model\.pretrained_audio_codec: .*cut\.nemo can't be loaded"):
        DuplexS2SModel(config | {"pretrained_audio_codec": str(tmp_path / "cut.nemo")})


def test_a_loss_that_is_not_finite_names_the_cuts(model):
    with torch.no_grad():
        model.audio_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="cut-0, cut-1"):
        model.training_step(make_batch((12, 12)), 0)


def fit(model, folder, max_steps, checkpoint=None):
    trainer = Trainer(
        max_steps=max_steps, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=folder, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader([make_batch((8,))] * max_steps, batch_size=None), ckpt_path=checkpoint)
    return trainer


def test_a_resumed_run_follows_the_schedule_of_its_config_not_of_its_checkpoint(config, tmp_path):
    """Twice the steps anneal over twice the steps; torch would restore the old end and stay at min_lr."""

    def build(max_steps):
        target = "nemo.core.optim.lr_scheduler.CosineAnnealing"
        schedule = {"_target_": target, "warmup_steps": 0, "min_lr": 1e-6, "max_steps": max_steps}
        return DuplexS2SModel(config | {"lr_scheduler": schedule})

    first = fit(build(4), tmp_path, 4)
    assert first.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-6)
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(build(8), tmp_path, 6, checkpoint=str(tmp_path / "last.ckpt"))
    uncut = fit(build(8), tmp_path, 6)
    assert resumed.global_step == 6
    assert resumed.optimizers[0].param_groups[0]["lr"] == pytest.approx(uncut.optimizers[0].param_groups[0]["lr"])
