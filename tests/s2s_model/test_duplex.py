import copy
import json

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from s2s_model import DuplexS2SModel
from s2s_model.losses import LossSums
from tests.s2s_model.builders import CODEC_RATE, make_batch, make_codec, make_llm, model_config
from tests.s2s_model.families import make_family_weights


def learn_by_heart(model, batch, lr, num_steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(num_steps):
        sums = model(batch)
        (sums.objective(model.cfg) / sums.num_frames).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_it_learns_a_dialogue_by_heart_and_answers_it(model):
    """Overfit one dialogue: the free-running answer becomes the reference, text and codes."""
    batch = make_batch((24,))
    batch["target_codes"], batch["target_code_lens"] = model.target_codes(batch)
    learn_by_heart(model, batch, lr=1e-2, num_steps=150)
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


def test_defect_09_validation_output_carries_the_codecs_own_rate(llm_dir, tmp_path):
    codec = make_codec(tmp_path / "codec16.nemo", sample_rate=16000, rates=(2, 2, 4, 8, 10))
    model = DuplexS2SModel(model_config(llm_dir, codec)).eval()
    output = model.validation_step({"seen": make_batch((16,), codec_rate=16000)}, 0)["seen"]
    assert model.target_sample_rate == output["sample_rate"] == 16000
    assert output["audio_lens"].item() == output["text_tokens"].shape[1] * 1280
    assert output["ceiling_audio_lens"].item() == 16 * 1280


def test_statistics_are_those_of_each_dialogue_alone(model):
    batch = make_batch((24, 9))
    output = model.eval().validation_step({"seen": batch}, 0)["seen"]
    counted = output["statistics"]
    assert counted["frames"].tolist() == [23, 8]
    assert counted["text_nll"].sum().item() == pytest.approx(output["text_loss"].item(), rel=1e-5)
    assert counted["code_nll"].mean(1).sum().item() == pytest.approx(output["audio_loss"].item(), rel=1e-5)
    with torch.no_grad():
        inputs = model.prepare_inputs(batch)
        text, codes, _ = model.heads(model.hidden_states(inputs))
    for row, frames in enumerate((23, 8)):
        labels, code_labels = inputs.text_labels_BT[row, :frames], inputs.code_labels_BTK[row, :frames]
        said = labels != model.tokenizer.pad_id
        hits = text[row, :frames].argmax(-1) == labels
        nll = -text[row, :frames].log_softmax(-1).gather(1, labels[:, None])[:, 0]
        code_nll = -codes[row, :frames].log_softmax(-1).gather(2, code_labels[..., None])[..., 0]
        assert 0 < said.sum() < frames
        assert counted["tokens"][row] == said.sum()
        assert counted["text_hits"][row] == hits.sum()
        assert counted["token_hits"][row] == hits[said].sum()
        assert torch.equal(counted["code_hits"][row], (codes[row, :frames].argmax(-1) == code_labels).sum(0))
        torch.testing.assert_close(counted["text_nll"][row], nll.sum())
        torch.testing.assert_close(counted["token_nll"][row], nll[said].sum())
        torch.testing.assert_close(counted["code_nll"][row], code_nll.sum(0))


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


def test_positions_stay_exact_in_bf16(config):
    model = DuplexS2SModel(config)
    exact = {name: buffer.clone() for name, buffer in model.llm.named_buffers()}
    model.to(torch.bfloat16)
    assert model.llm.get_input_embeddings().weight.dtype == torch.bfloat16
    assert exact
    for name, buffer in model.llm.named_buffers():
        assert torch.equal(buffer, exact[name])


def test_lightnings_way_to_load_a_checkpoint_names_ours():
    with pytest.raises(ValueError, match=r"train:export RUN OUT.*from_pretrained"):
        DuplexS2SModel.load_from_checkpoint("last.ckpt")


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


def poisoned(frames):
    """A batch whose audio makes the loss NaN."""
    batch = make_batch(frames)
    batch["source_audio"] = batch["source_audio"] * float("nan")
    batch["cut_ids"] = [f"bad-{b}" for b in range(len(frames))]
    return batch


def fit_on(model, folder, batches, **options):
    trainer = Trainer(
        max_steps=options.pop("max_steps", len(batches)), accelerator="cpu", devices=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=folder, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(batches, batch_size=None))
    return trainer


def with_fused(config, fused):
    """A fused optimizer judges by itself whether it steps, and the host reads of it a step later."""
    return config | {"optimizer": config["optimizer"] | {"fused": fused}}


FUSED = pytest.mark.parametrize("fused", [False, True])


@FUSED
def test_a_step_whose_loss_is_not_finite_is_skipped_counted_and_named(config, tmp_path, caplog, fused):
    torch.manual_seed(0)
    model = DuplexS2SModel(with_fused(config, fused))
    reference = copy.deepcopy(model)
    trainer = fit_on(model, tmp_path, [make_batch((8,)), poisoned((8, 6)), make_batch((8,), seed=1)])
    assert trainer.callback_metrics["nonfinite_steps"] == 1
    assert "bad-0, bad-1: the step is skipped" in caplog.text
    # Adam's state too is as if the poisoned batch hadn't been there
    fit_on(reference, tmp_path, [make_batch((8,)), make_batch((8,), seed=1)])
    for mine, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, wanted)


def test_the_optimizer_is_told_of_one_step_alone(config, tmp_path):
    model = DuplexS2SModel(with_fused(config, True))
    trainer = fit_on(model, tmp_path, [make_batch((8,)), poisoned((8,))], gradient_clip_val=1.0)
    optimizer = trainer.optimizers[0]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@FUSED
def test_a_gradient_that_is_not_finite_skips_its_step_though_the_loss_is_finite(config, tmp_path, caplog, fused):
    torch.manual_seed(0)
    model = DuplexS2SModel(with_fused(config, fused))
    steps = iter([False, True, False])
    model.audio_head.weight.register_hook(lambda grad: grad * float("inf") if next(steps) else grad)
    trainer = fit_on(model, tmp_path, [make_batch((8,))] * 3, gradient_clip_val=1.0)
    assert trainer.callback_metrics["nonfinite_steps"] == 1
    assert "train_loss or its gradient isn't finite at step 1 on cuts cut-0" in caplog.text
    assert all(torch.isfinite(p).all() for p in model.parameters())


@FUSED
def test_a_skipped_step_leaves_no_trace_in_batch_norms(config, tmp_path, fused):
    config["perception"]["encoder"]["conv_norm_type"] = "batch_norm"
    torch.manual_seed(0)
    model = DuplexS2SModel(with_fused(config, fused))
    reference = copy.deepcopy(model)
    fit_on(model, tmp_path, [make_batch((8,)), poisoned((8,))])
    fit_on(reference, tmp_path, [make_batch((8,))])
    norms = [name for name, _ in model.named_buffers() if "running_mean" in name]
    assert norms
    for name in norms:
        assert torch.equal(model.get_buffer(name), reference.get_buffer(name))
        assert model.get_buffer(name).any()


def test_a_schedule_goes_on_where_it_stood_whatever_the_config_says_of_its_start(config, tmp_path):
    schedule = {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5, "last_epoch": -1}
    first = fit(DuplexS2SModel(config | {"lr_scheduler": schedule}), tmp_path, 2)
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = fit(DuplexS2SModel(config | {"lr_scheduler": schedule}), tmp_path, 3, str(tmp_path / "last.ckpt"))
    assert resumed.optimizers[0].param_groups[0]["lr"] == pytest.approx(3e-3 * 0.5**3)


def test_a_checkpoint_of_other_parameter_groups_says_which_keys_to_set(config, tmp_path):
    first = fit(DuplexS2SModel(config | {"decay_norms_and_biases": True}), tmp_path, 1)
    first.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"has 1 parameter groups, this config makes 2.*decay_norms_and_biases=true"):
        fit(DuplexS2SModel(config), tmp_path, 2, str(tmp_path / "last.ckpt"))


def test_validation_losses_count_frames_in_float32_under_bf16(model):
    """Lightning's bf16-true makes bf16 the default dtype; bf16 counts no further than 256."""
    from s2s_model.validation import ValidationLosses

    logged = {}
    torch.set_default_dtype(torch.bfloat16)
    try:
        losses = ValidationLosses()
        for _ in range(40):
            sums = LossSums(torch.tensor(42.0), torch.tensor(84.0), torch.tensor(42))
            losses.add("seen", sums, sums.text)
        losses.log("val", torch.device("cpu"), lambda name, value: logged.update({name: float(value)}))
    finally:
        torch.set_default_dtype(torch.float32)
    assert logged["val_text_loss"] == logged["val_text_loss_seen"] == 1.0
    assert logged["val_audio_loss"] == 2.0


def test_a_fused_optimizer_clips_as_another_does(config, tmp_path):
    states = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = DuplexS2SModel(with_fused(config, fused))
        trainer = fit_on(model, tmp_path, [make_batch((8,), seed=s) for s in range(3)], gradient_clip_val=0.01)
        states.append([*model.parameters(), *(state["exp_avg"] for state in trainer.optimizers[0].state.values())])
    for mine, wanted in zip(*states, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-6)


@FUSED
def test_too_many_steps_that_are_not_finite_end_the_run(config, tmp_path, fused):
    model = DuplexS2SModel(with_fused(config, fused) | {"max_nonfinite_steps": 1})
    with pytest.raises(FloatingPointError, match=r"cuts bad-0, after 1 such steps.*max_nonfinite_steps is 1"):
        fit_on(model, tmp_path, [poisoned((8,)), make_batch((8,)), poisoned((8,)), make_batch((8,))])


def test_an_accumulated_step_weighs_every_frame_alike(config, tmp_path):
    """Two batches of 23 and 7 valid frames give the gradient of the 30 together, not the mean of two means."""
    torch.manual_seed(0)
    model = DuplexS2SModel(config | {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    reference = copy.deepcopy(model)
    batches = [make_batch((24,)), make_batch((8,), seed=1)]
    fit_on(model, tmp_path, batches, accumulate_grad_batches=2, max_steps=1)
    sums = [reference(batch) for batch in batches]
    loss = sum(s.objective(reference.cfg) for s in sums) / sum(s.num_frames for s in sums)
    loss.backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    for (name, mine), wanted in zip(model.named_parameters(), reference.parameters(), strict=True):
        # float32: the gradients are scaled before instead of after they are summed
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_the_users_text_is_a_third_channel_that_learns_and_is_written(config):
    torch.manual_seed(0)
    model = DuplexS2SModel(config | {"predict_user_text": True, "delay_source_text_by": 2})
    batch = make_batch((24,))
    batch["source_tokens"] = batch["source_tokens"].roll(3, dims=1)
    inputs = model.prepare_inputs(batch)
    assert torch.equal(inputs.user_text_labels_BT[:, 1:], batch["source_tokens"][:, :22])
    learn_by_heart(model, batch, lr=3e-3, num_steps=250)
    answer = model.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    assert answer["tokens_user_text"][0, :23].tolist() == inputs.user_text_labels_BT[0].tolist()
    assert answer["user_text"] == [model.tokenizer.ids_to_text(batch["source_tokens"][0].tolist())]
    assert model.validation_step({"seen": batch}, 0)["seen"]["text"] == answer["text"]


def test_delays_move_text_and_speech_against_each_other(config):
    batch = make_batch((24,))
    plain = DuplexS2SModel(config).prepare_inputs(batch)
    late = DuplexS2SModel(config | {"delay_speech_channel_by": 3, "advance_text_channel_by": 1}).prepare_inputs(batch)
    assert torch.equal(late.code_labels_BTK[:, 2:], plain.code_labels_BTK[:, :-2])
    assert torch.equal(late.text_labels_BT[:, :-1], plain.text_labels_BT[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delay_speech_channel_by": -1}, r"model\.delay_speech_channel_by is -1"),
        ({"delay_source_text_by": 2}, r"delay_source_text_by has no effect without model\.predict_user_text"),
        ({"hide_codes_share": 1.5}, r"model\.hide_codes_share is 1\.5"),
        ({"generation": {"audio": {"temperature": -1}}}, r"model\.generation\.audio\.temperature is -1"),
        ({"token_loss_weight": {"pad": -1.0}}, r"model\.token_loss_weight\.pad is -1\.0"),
        ({"audio_loss_weight": float("inf")}, r"model\.audio_loss_weight is inf"),
        ({"asr_loss_weight": 3.0}, r"asr_loss_weight has no effect without model\.predict_user_text"),
        ({"delay_text_channel_by": 2, "advance_text_channel_by": 1}, r"are opposed"),
        ({"codebook_loss_weight": [1.0]}, r"has 1 numbers, the codec 2 codebooks"),
    ],
)
def test_figures_out_of_range_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        DuplexS2SModel(config | change)


def test_the_llm_trains_in_training_mode_and_frozen_parts_do_not(codec_path, tmp_path):
    """transformers loads weights in eval mode, in which dropout, LoRA's too, would be off."""
    llm = make_family_weights("qwen2.5", tmp_path / "llm")
    keys = {"pretrained_weights": True, "freeze_params": [r"^perception\.encoder\."]}
    model = DuplexS2SModel(model_config(llm, codec_path, **keys))
    assert model.llm.training
    assert model.perception.modality_adapter.training
    assert not any(module.training for module in model.perception.encoder.modules())
    assert not model.eval().llm.training
    assert not model.train().perception.encoder.training


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


@pytest.mark.parametrize("schedule", [None, {"_target_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5}])
def test_a_resumed_run_has_the_rates_of_its_config_not_of_its_checkpoint(schedule, config, tmp_path, caplog):
    def build(rate, weight_decay):
        optimizer = {"_target_": "torch.optim.AdamW", "lr": rate, "betas": [0.9, 0.98], "weight_decay": weight_decay}
        return DuplexS2SModel(config | {"optimizer": optimizer, "lr_scheduler": schedule})

    fit(build(1e-3, 0.01), tmp_path, 2).save_checkpoint(tmp_path / "last.ckpt")
    same = fit(build(1e-3, 0.01), tmp_path, 4, checkpoint=str(tmp_path / "last.ckpt"))
    assert "as the config has it now" not in caplog.text
    other = fit(build(2e-4, 0.2), tmp_path, 4, checkpoint=str(tmp_path / "last.ckpt"))
    assert "the optimizer's lr of parameter group 0 goes from 0.001 to 0.0002" in caplog.text
    for group, before in zip(other.optimizers[0].param_groups, same.optimizers[0].param_groups, strict=True):
        assert group["lr"] == pytest.approx(before["lr"] / 5)
        assert group["betas"] == (0.9, 0.98)
    decays = [group["weight_decay"] for group in other.optimizers[0].param_groups]
    assert decays == [0.2, 0.0]


@pytest.mark.parametrize("keys", [{}, {"predict_user_text": True}, {"lora": {"r": 2}}], ids=str)
def test_an_llm_loaded_in_bf16_is_the_one_cast_to_it(keys, codec_path, tmp_path):
    config = model_config(make_family_weights("llama-3", tmp_path), codec_path, pretrained_weights=True, **keys)
    built = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        built.append(DuplexS2SModel(config, llm_dtype=dtype))
    whole, loaded = built
    assert whole.llm.get_input_embeddings().weight.dtype == torch.float32
    assert loaded.llm.get_input_embeddings().weight.dtype == torch.bfloat16
    assert next(loaded.perception.parameters()).dtype == torch.float32
    whole, loaded = (model.to(torch.bfloat16).state_dict() for model in built)
    assert whole.keys() == loaded.keys()
    assert all(torch.equal(whole[name], loaded[name]) for name in whole)
