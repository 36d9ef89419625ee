"""Encoders of NeMo and Hugging Face behind one interface: what they compute, and what is refused.

Tolerance of comparisons with NeMo and transformers: the same float32 operations, in another order where attention is
fused; rounding stays some ten times below 1e-4 of the largest value.
"""

import copy
import json

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from tests.s2s_model import perception_builders as make
from tests.s2s_model.builders import conformer
from tests.s2s_model.perception_builders import FRAME_SAMPLES, HIDDEN, build, close, encode, noise, section

PADDED = [30 * FRAME_SAMPLES, 11 * FRAME_SAMPLES + 500, FRAME_SAMPLES]
ADAPTERS = {
    "conformer": None,
    "conformer_as_wide": conformer(32, 1) | {"d_model": HIDDEN},
    "identity": make.IDENTITY,
    "multi_layer": make.multi_layer(),
}


@pytest.fixture(scope="module")
def asr_path(tmp_path_factory):
    return make.make_asr(tmp_path_factory.mktemp("asr") / "asr.nemo")


@pytest.fixture(scope="module")
def whisper_dir(tmp_path_factory):
    return make.make_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def w2v_bert_dir(tmp_path_factory):
    return make.make_w2v_bert(tmp_path_factory.mktemp("w2v_bert"))


def whisper(**keys):
    return build({"encoder": {"model_type": "whisper"} | make.whisper_keys(), **keys})


def w2v_bert(encoder=None, **keys):
    return build({"encoder": {"model_type": "wav2vec2-bert"} | make.w2v_bert_keys(**encoder or {}), **keys})


FAMILIES = pytest.mark.parametrize("family", [whisper, w2v_bert])


def gradients(perception, audio_BS, lens):
    """Gradients of the valid frames' mean square, by parameter name."""
    perception.zero_grad()
    torch.manual_seed(0)  # dropout
    out_BTH, frames_B = perception(input_signal=audio_BS, input_signal_length=torch.tensor(lens))
    sum(out_BTH[b, : frames_B[b]].square().mean() for b in range(len(lens))).backward()
    return {name: p.grad.clone() for name, p in perception.named_parameters() if p.grad is not None}


def valid(out_BTH, frames_B):
    return torch.cat([out_BTH[b, : frames_B[b]] for b in range(len(frames_B))])


# --- NeMo: the same module ----------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("attention", ["rel_pos", "abs_pos"])
def test_outputs_and_gradients_equal_nemo_on_a_padded_batch(adapter, attention):
    """Ours attends block by block where the context is limited, NeMo to all frames."""
    from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule

    hidden_size = 32 if adapter == "identity" else HIDDEN
    parts = section({"self_attention_model": attention}, ADAPTERS[adapter])
    ours = build(parts, hidden_size)
    assert ours.blocks()[0].self_attn.use_pytorch_sdpa
    theirs = AudioPerceptionModule(OmegaConf.create(parts | {"output_dim": hidden_size})).eval()
    theirs.load_state_dict(ours.state_dict())
    audio_BS = noise(30, batch_size=3)
    ours_BTH, theirs_BTH = encode(ours, audio_BS, PADDED), encode(theirs, audio_BS, PADDED)
    assert torch.equal(ours_BTH[1], theirs_BTH[1])
    assert close(valid(*ours_BTH), valid(*theirs_BTH))
    wanted = gradients(theirs, audio_BS, PADDED)
    got = gradients(ours, audio_BS, PADDED)
    scale = max(g.abs().max() for g in wanted.values())
    assert got.keys() == wanted.keys()
    assert all((got[name] - wanted[name]).abs().max() < 1e-4 * scale for name in wanted)


def test_attention_is_nemos_own_where_the_config_says_so():
    perception = build(section({"use_pytorch_sdpa": False}, conformer(32, 1)))
    assert [block.self_attn.use_pytorch_sdpa for block in perception.blocks()] == [False, False, True]


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_padding_changes_nothing_of_an_example(adapter):
    perception, audio_BS = build(section({}, ADAPTERS[adapter])), noise(30, batch_size=3)
    batch_BTH, frames_B = encode(perception, audio_BS, PADDED)
    assert frames_B.tolist() == [31, 13, 2]
    for b, size in enumerate(PADDED):
        alone_BTH, _ = encode(perception, audio_BS[b : b + 1, :size])
        assert close(batch_BTH[b : b + 1, : frames_B[b]], alone_BTH[:, : frames_B[b]])


def test_sizes_left_open_are_set():
    adapter = conformer(32, 1)
    del adapter["feat_in"]
    perception = build(section({}, adapter))
    assert encode(perception, noise(3))[0].shape == (1, 4, HIDDEN)
    assert perception.resolved_config()["modality_adapter"]["feat_in"] == 32


def test_an_identity_adapter_of_another_width_is_projected():
    perception = build(section({}, make.IDENTITY))
    assert (perception.proj.in_features, perception.proj.out_features) == (32, HIDDEN)
    assert encode(perception, noise(3))[0].shape == (1, 4, HIDDEN)


def test_several_connected_layers_get_the_llms_width():
    perception = build(section({}, make.multi_layer(output_dim=7)))
    assert encode(perception, noise(3))[0].shape == (1, 4, HIDDEN)


def test_blocks_are_the_layers_of_encoder_and_adapter():
    perception = build(section())
    names = {module: name for name, module in perception.named_modules()}
    wanted = ["encoder.layers.0", "encoder.layers.1", "modality_adapter.layers.0"]
    assert [names[block] for block in perception.blocks()] == wanted


def test_rates_are_those_of_the_config():
    perception = build(section())
    assert (perception.sample_rate, perception.frame_length_s) == (16000, 0.08)


# --- NeMo: pretrained ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "prefix"), [("conformer", "encoder."), ("multi_layer", "encoder_multilayer.encoder.")]
)
def test_all_weights_of_a_pretrained_encoder_load(asr_path, adapter, prefix):
    from nemo.collections.asr.models import ASRModel

    parts = {"modality_adapter": section({}, ADAPTERS[adapter])["modality_adapter"]}
    perception = build(parts, pretrained_asr=asr_path, pretrained_weights=True)
    asr = ASRModel.restore_from(asr_path, map_location="cpu")
    state = perception.state_dict()
    for name, value in asr.encoder.state_dict().items():
        assert torch.equal(state[prefix + name], value)
    assert all(block.self_attn.use_pytorch_sdpa for block in perception.blocks())


def test_defined_keys_go_over_those_of_the_asr_and_nulls_dont(asr_path):
    parts = section() | {"encoder": {"att_context_size": [4, 0], "d_model": None, "dropout": 0.5}}
    perception = build(parts, pretrained_asr=asr_path, pretrained_weights=True)
    assert perception.encoder.att_context_size == [4, 0]
    assert perception.encoder.layers[0].dropout.p == 0.5
    assert perception.encoder.d_model == 32


def test_without_weights_the_architecture_of_the_asr_is_taken(asr_path):
    parts = {"modality_adapter": conformer(32, 1), "encoder": {"att_context_size": [4, 0]}}
    trained = build(parts, pretrained_asr=asr_path, pretrained_weights=True)
    random = build(parts, pretrained_asr=asr_path)
    assert random.resolved_config() == trained.resolved_config()
    assert random.encoder.att_context_size == [4, 0]
    assert not torch.equal(random.encoder.pre_encode.out.weight, trained.encoder.pre_encode.out.weight)


def test_a_described_encoder_needs_no_asr(tmp_path):
    assert build(section(), pretrained_asr=str(tmp_path / "not_there.nemo")).encoder.n_layers == 2


def test_weights_that_dont_fit_are_refused_with_both_shapes(asr_path):
    parts = {"modality_adapter": conformer(32, 1), "encoder": {"conv_kernel_size": 7}}
    with pytest.raises(ValueError, match=r"depthwise_conv\.weight .* \[32, 1, 5\], .* \[32, 1, 7\]"):
        build(parts, pretrained_asr=asr_path, pretrained_weights=True)
    parts["encoder"] = {"n_layers": 3}
    with pytest.raises(ValueError, match=r"no weights for \d+ tensors of the encoder, encoder\.layers\.2\."):
        build(parts, pretrained_asr=asr_path, pretrained_weights=True)


def test_an_asr_that_isnt_there_is_named(tmp_path):
    path = str(tmp_path / "no.nemo")
    with pytest.raises(FileNotFoundError, match=r"model\.pretrained_asr: no file .*no\.nemo"):
        build({"modality_adapter": conformer(32, 1)}, pretrained_asr=path, pretrained_weights=True)


# --- the section that builds it again -----------------------------------------------------------------------


def build_again(perception):
    resolved = json.loads(json.dumps(perception.resolved_config()))  # what a file would hold
    again = build(resolved)
    again.load_state_dict(perception.state_dict())
    return again


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_resolved_config_builds_the_same_nemo_module(asr_path, adapter):
    parts = {"modality_adapter": section({}, ADAPTERS[adapter])["modality_adapter"]}
    perception = build(parts, pretrained_asr=asr_path, pretrained_weights=True)
    assert torch.equal(encode(build_again(perception), noise(9))[0], encode(perception, noise(9))[0])


@pytest.mark.parametrize("folder", ["whisper_dir", "w2v_bert_dir"])
def test_the_resolved_config_builds_the_same_hugging_face_module(request, folder):
    parts = {"encoder": {"attention_dropout": 0.25}}
    perception = build(parts, pretrained_asr=request.getfixturevalue(folder), pretrained_weights=True)
    again = build_again(perception)
    assert again.encoder.config.attention_dropout == 0.25
    assert torch.equal(encode(again, noise(9))[0], encode(perception, noise(9))[0])


# --- training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make_it",
    [
        lambda **keys: build(section({"conv_norm_type": "batch_norm"}, **keys)),
        lambda **keys: build(section({}, make.multi_layer(), **keys)),
        whisper,
        w2v_bert,
    ],
)
def test_activation_checkpointing_changes_memory_only(make_it):
    stored, recomputed = make_it().train(), make_it(activation_checkpointing=True).train()
    recomputed.load_state_dict(stored.state_dict())
    assert [name for name, _ in recomputed.named_parameters()] == [name for name, _ in stored.named_parameters()]
    audio_BS = noise(30, batch_size=3)
    seen = [hold_saved_bytes(p, audio_BS) for p in (stored, recomputed)]
    assert seen[1] < 0.7 * seen[0]
    stored.zero_grad()
    wanted = gradients(stored, audio_BS, PADDED)
    got = gradients(recomputed, audio_BS, PADDED)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    state = recomputed.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.state_dict().items())


def hold_saved_bytes(perception, audio_BS):
    """Bytes that the forward pass keeps for backward."""
    held = []

    def pack(x):
        held.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        perception(input_signal=audio_BS, input_signal_length=torch.tensor(PADDED))
    return sum(held)


def test_activation_checkpointing_can_be_undone():
    perception = build(section(activation_checkpointing=True)).train()
    few = hold_saved_bytes(perception, noise(30, batch_size=3))
    perception.activation_checkpointing(False)
    assert hold_saved_bytes(perception, noise(30, batch_size=3)) > few


@pytest.mark.parametrize("make_it", [lambda **keys: build(section(**keys)), whisper, w2v_bert])
def test_spec_augment_masks_in_training_only(make_it):
    plain, masked = make_it(), make_it(spec_augment=make.SPEC_AUGMENT)
    masked.load_state_dict(plain.state_dict())
    assert torch.equal(encode(masked, noise(20))[0], encode(plain, noise(20))[0])
    wanted = encode(plain.train(), noise(20))[0]
    assert not close(encode(masked.train(), noise(20))[0], wanted)


def test_dither_is_added_in_training_only_and_not_to_the_batch():
    parts = section()
    parts["preprocessor"]["dither"] = 0.1
    perception, audio_BS = build(parts), noise(9)
    assert torch.equal(encode(perception, audio_BS)[0], encode(build(section()), audio_BS)[0])
    wanted = encode(perception, audio_BS)[0]
    assert not close(encode(perception.train(), audio_BS)[0], wanted)
    assert torch.equal(audio_BS, noise(9))


@pytest.mark.parametrize("make_it", [lambda: build(section()), whisper, w2v_bert])
def test_bfloat16_weights_hear_float32_features(make_it):
    """As under Lightning's bf16-true: bf16 is the default while the model is built, then all of it is cast."""
    exact = make_it()
    torch.set_default_dtype(torch.bfloat16)
    try:
        coarse = make_it().to(torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    coarse.load_state_dict(exact.state_dict())
    out_BTH, _ = encode(coarse, noise(20))
    assert out_BTH.dtype == torch.bfloat16
    assert close(out_BTH.float(), encode(exact, noise(20))[0], rtol=0.1)
    if hasattr(coarse, "preprocessor"):
        lens_B = torch.tensor([20 * FRAME_SAMPLES])
        mels = [p.preprocessor.featurizer(noise(20), lens_B)[0] for p in (coarse, exact)]
        assert torch.equal(*mels)


# --- Hugging Face -------------------------------------------------------------------------------------------


def stacked(perception, vectors_TC):
    """The adapter's work, written out for one example."""
    missing = -len(vectors_TC) % 4
    vectors_TC = torch.cat([vectors_TC, vectors_TC.new_zeros(missing, vectors_TC.shape[1])])
    return perception.modality_adapter.projection(vectors_TC.reshape(-1, 4 * vectors_TC.shape[1]))


def test_whisper_equals_transformers_two_seconds_at_a_time(whisper_dir):
    from transformers import WhisperFeatureExtractor, WhisperModel

    perception = build({}, pretrained_asr=whisper_dir, pretrained_weights=True)
    extractor = WhisperFeatureExtractor(feature_size=16)
    encoder = WhisperModel.from_pretrained(whisper_dir).encoder.eval()
    audio_S = noise(37)[0, :-100]  # 2.95 s
    with torch.no_grad():
        pieces = [
            encoder(extractor(p.numpy(), sampling_rate=16000, max_length=32000, return_tensors="pt").input_features)
            for p in audio_S.split(32000)
        ]
        vectors_TC = torch.cat([piece.last_hidden_state[0] for piece in pieces])[: -(-len(audio_S) // 320)]
        wanted_TH = stacked(perception, vectors_TC)
    assert close(encode(perception, audio_S[None])[0][0], wanted_TH)
    assert len(wanted_TH) == 37


def test_w2v_bert_equals_transformers(w2v_bert_dir):
    from transformers import AutoFeatureExtractor, Wav2Vec2BertModel

    perception = build({}, pretrained_asr=w2v_bert_dir, pretrained_weights=True)
    extractor = AutoFeatureExtractor.from_pretrained(w2v_bert_dir)
    encoder = Wav2Vec2BertModel.from_pretrained(w2v_bert_dir).eval()
    audio_S = noise(37)[0]
    with torch.no_grad():
        features = extractor(audio_S.numpy(), sampling_rate=16000, return_tensors="pt")
        wanted_TH = stacked(perception, encoder(**features).last_hidden_state[0])
    assert close(encode(perception, audio_S[None])[0][0], wanted_TH)
    assert len(wanted_TH) == 37


@FAMILIES
def test_padding_changes_nothing_of_a_hugging_face_example(family):
    perception, audio_BS = family(), noise(30, batch_size=4)
    sizes = [*PADDED, 100]
    batch_BTH, frames_B = encode(perception, audio_BS, sizes)
    # w2v-BERT's features need a window of 25 ms, so that 500 samples aren't a vector of its adapter yet.
    assert frames_B.tolist() == [30, 12 if family is whisper else 11, 1, 1]
    assert batch_BTH.shape == (4, 30, HIDDEN)
    for b, size in enumerate(sizes):
        alone_BTH, _ = encode(perception, audio_BS[b : b + 1, :size])
        assert close(batch_BTH[b : b + 1, : frames_B[b]], alone_BTH[:, : frames_B[b]])


@FAMILIES
def test_a_nemo_adapter_subsamples_a_hugging_face_encoder(family):
    perception, audio_BS = family(modality_adapter=conformer(32, 4)), noise(30, batch_size=3)
    batch_BTH, frames_B = encode(perception, audio_BS, PADDED)
    alone_BTH, _ = encode(perception, audio_BS[1:2, : PADDED[1]])
    assert close(batch_BTH[1:2, : frames_B[1]], alone_BTH[:, : frames_B[1]])
    assert [type(block).__name__ for block in perception.blocks()][-1] == "ConformerLayer"


def test_a_hidden_layer_makes_the_adapter_an_mlp():
    adapter = {"_target_": "s2s_model.perception.adapters.StackingAdapter", "hidden_dim": 20}
    perception = whisper(modality_adapter=adapter)
    assert [type(layer) for layer in perception.modality_adapter.projection] == [
        nn.LayerNorm,
        nn.Linear,
        nn.GELU,
        nn.Linear,
    ]
    assert encode(perception, noise(5))[0].shape == (1, 5, HIDDEN)


def test_the_strides_of_w2v_berts_own_adapter_count():
    own = {"add_adapter": True, "adapter_stride": 2, "output_hidden_size": 40, "num_adapter_layers": 1}
    perception = w2v_bert(own)
    assert perception.modality_adapter.subsampling_factor == 2
    batch_BTH, frames_B = encode(perception, noise(30, batch_size=3), PADDED)
    assert frames_B.tolist() == [30, 11, 1]
    alone_BTH, _ = encode(perception, noise(30, batch_size=3)[1:2, : PADDED[1]])
    assert close(batch_BTH[1:2, : frames_B[1]], alone_BTH[:, : frames_B[1]])


def test_without_weights_a_hugging_face_encoder_is_random(whisper_dir):
    trained = build({}, pretrained_asr=whisper_dir, pretrained_weights=True)
    random = build({}, pretrained_asr=whisper_dir)
    assert random.resolved_config() == trained.resolved_config()
    assert not torch.equal(random.encoder.conv1.weight, trained.encoder.conv1.weight)


def test_no_layer_is_dropped_unless_asked(w2v_bert_dir):
    assert w2v_bert().encoder.config.layerdrop == 0
    assert w2v_bert({"layerdrop": 0.3}).encoder.config.layerdrop == 0.3


@FAMILIES
def test_hugging_face_encoders_hear_the_whole_recording(family):
    with pytest.raises(ValueError, match=r"model\.perception\.encoder: a .* hears the whole recording"):
        family().stream(1)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["preprocessor", "encoder", "modality_adapter"])
def test_a_missing_part_is_named(part):
    parts = section()
    del parts[part]
    with pytest.raises(ValueError, match=rf"model\.perception\.{part} is missing"):
        build(parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (section({"subsampling_factor": 4}), "every 40 ms, data.frame_length asks for 80 ms"),
        (section({"feat_in": 20}), r"encoder\.feat_in is 20, .*preprocessor\.features is 16"),
        (section({}, conformer(40, 1)), r"modality_adapter\.feat_in is 40, the encoder's vectors have 32"),
        (section({}, make.multi_layer(input_dim=40)), r"modality_adapter\.input_dim is 40, .* 32"),
        (section({}, make.multi_layer() | {"_target_": f"{make.CONNECTORS}.QformerConnector"}), "one a frame"),
        (section({"_target_": "nemo.collections.asr.modules.NoEncoder"}), "encoder._target_: there is no"),
        (section({"no_such_key": 1}), "no_such_key"),
        (section(target="nemo.collections.speechlm2.modules.perception.Other"), "perception.target is .*Other"),
        (section() | {"encoder": {"_target_": "os.system"}}, r"encoder\._target_: 'os\.system' isn't in a package"),
        ({"encoder": {"model_type": "bert"}}, "model_type is 'bert': use one of whisper, wav2vec2-bert"),
        ({"encoder": {"model_type": "whisper", "d_modl": 3}}, r"encoder\.d_modl .* did you mean d_model\?"),
        (
            {"encoder": {"model_type": "whisper", **make.whisper_keys()}, "preprocessor": {"feature_size": 20}},
            "gives 20 features, model.perception.encoder takes 16",
        ),
        (
            {"encoder": {"model_type": "whisper", **make.whisper_keys()}, "modality_adapter": make.IDENTITY},
            "every 20 ms, data.frame_length asks for 80 ms",
        ),
    ],
)
def test_what_doesnt_fit_is_refused_with_both_sides(parts, message):
    with pytest.raises(ValueError, match=message):
        build(parts)


def test_frames_that_are_no_multiple_of_the_encoders_are_refused():
    parts = {"encoder": {"model_type": "whisper", **make.whisper_keys()}}
    with pytest.raises(ValueError, match=r"every 20 ms and data\.frame_length asks for 50 ms"):
        build(parts, frame_s=0.05)


def test_a_folder_that_holds_no_known_encoder_is_refused(tmp_path, llm_dir):
    with pytest.raises(ValueError, match=r"model\.pretrained_asr: .* needs a config\.json"):
        build({}, pretrained_asr=str(tmp_path))
    with pytest.raises(ValueError, match="is a 'llama', which is no encoder known here: use one of whisper"):
        build({}, pretrained_asr=llm_dir)


def test_an_encoder_of_another_family_than_the_weights_is_refused(whisper_dir):
    with pytest.raises(ValueError, match=r"model_type is 'wav2vec2-bert', model\.pretrained_asr .* is a 'whisper'"):
        build({"encoder": {"model_type": "wav2vec2-bert"}}, pretrained_asr=whisper_dir)


def test_hugging_face_weights_that_dont_fit_are_refused(whisper_dir):
    with pytest.raises(ValueError, match=r"model\.pretrained_asr: .* 1 tensors? of the encoder|no weights"):
        build({"encoder": {"encoder_layers": 3}}, pretrained_asr=whisper_dir, pretrained_weights=True)
    with pytest.raises(ValueError, match=r"model\.pretrained_asr: no weights for the encoder at"):
        build({"encoder": {"d_model": 64}}, pretrained_asr=whisper_dir, pretrained_weights=True)


def test_a_copy_has_its_own_features():
    """NeMo keeps a bound wrapper in its featurizer, which a copy would share."""
    perception = build(section())
    expected = encode(perception, noise(6))[0]
    copied = copy.deepcopy(perception)
    perception.preprocessor.featurizer.fb.zero_()
    assert torch.equal(encode(copied, noise(6))[0], expected)
    assert not torch.equal(encode(perception, noise(6))[0], expected)
