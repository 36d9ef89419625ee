"""A stream gives what the whole recording gives, whatever else happens to its batch.

Tolerance: the stream sums attention over another number of keys, and the convolutions over another order: float32
rounding stays some ten times below 1e-4 of the largest value.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from s2s_model.perception import stream_stages
from tests.s2s_model import perception_builders as make
from tests.s2s_model.builders import conformer
from tests.s2s_model.perception_builders import (
    FRAME_SAMPLES,
    build,
    close,
    encode,
    noise,
    published_shape,
    section,
)

DEMO = Path(__file__).parents[2] / "apps/train/conf/demo.yaml"
TWO_AHEAD: dict[str, Any] = {"att_context_size": [6, 2]}
ONE_AHEAD: dict[str, Any] = {"att_context_size": [6, 1]}


def demo() -> dict[str, Any]:
    config = OmegaConf.load(DEMO)
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain["model"]["perception"]["preprocessor"]["sample_rate"] = plain["data"]["source_sample_rate"]
    parts: dict[str, Any] = plain["model"]["perception"]
    return parts


def run(stream, audio_BS, frames_a_push=1):
    pieces = [stream.push(piece) for piece in audio_BS.split(frames_a_push * FRAME_SAMPLES, dim=1)]
    return torch.cat([*pieces, stream.flush()], dim=1)


@pytest.fixture(scope="module")
def causal():
    return build(section())


@pytest.fixture(scope="module")
def looks_ahead():
    return build(section(TWO_AHEAD, conformer(32, 1) | ONE_AHEAD))


@pytest.mark.parametrize("parts", [demo, published_shape])
def test_more_frames_than_the_context_equal_the_whole_recording(parts):
    perception, audio_BS = build(parts()), noise(76)
    assert close(run(perception.stream(1), audio_BS), encode(perception, audio_BS)[0])


@pytest.mark.parametrize(
    ("encoder", "adapter", "lookahead"),
    [
        ({}, None, 0),
        ({"subsampling": "striding", "xscaling": True}, None, 0),
        ({"att_context_style": "regular", "att_context_size": [5, 0]}, None, 0),
        ({"att_context_size": [0, 0], "conv_norm_type": "batch_norm"}, None, 0),
        ({"untie_biases": False, "pos_emb_max_len": 4, "feat_out": 20}, conformer(20, 1), 0),
        ({}, make.IDENTITY, 0),
        ({"n_layers": 3}, make.multi_layer(), 0),
        ({"n_layers": 3, "feat_out": 20}, make.multi_layer(include_final_output=False, input_dim=20), 0),
        (ONE_AHEAD, None, 1),
        ({}, conformer(32, 1) | ONE_AHEAD, 1),
        (ONE_AHEAD, conformer(32, 1) | ONE_AHEAD, 1),
        (TWO_AHEAD, conformer(32, 1) | ONE_AHEAD, 5),
        (TWO_AHEAD, make.multi_layer(), 2),
    ],
)
def test_every_kind_of_encoder_equals_the_whole_recording(encoder, adapter, lookahead):
    perception = build(section(encoder, adapter))
    stream = perception.stream(2)
    assert stream.lookahead_frames == lookahead
    for frames in (31, 32, 2, 1):
        audio_BS = noise(frames, batch_size=2, seed=frames)
        assert close(run(stream, audio_BS), encode(perception, audio_BS)[0])


@pytest.mark.parametrize("preprocessor", [{"n_fft": 1024}, {"window_size": 0.05}, {"pad_to": 16}, {"preemph": None}])
def test_every_kind_of_mel_features_equals_the_whole_recording(preprocessor):
    parts = section()
    parts["preprocessor"] |= preprocessor
    perception, audio_BS = build(parts), noise(9)
    whole_BTH, lens_B = encode(perception, audio_BS)
    assert close(run(perception.stream(1), audio_BS), whole_BTH[:, : lens_B[0]])


def test_each_push_gives_as_many_frames_as_it_got_after_the_lookahead(looks_ahead):
    stream = looks_ahead.stream(1)
    frames = [stream.push(piece).shape[1] for piece in noise(10).split(FRAME_SAMPLES, dim=1)]
    assert frames == [0] * 5 + [1] * 5
    assert stream.flush().shape == (1, 6, make.HIDDEN)


@pytest.mark.parametrize("frames_a_push", [2, 5, 32])
def test_the_size_of_a_push_changes_nothing(looks_ahead, frames_a_push):
    audio_BS = noise(32)
    assert torch.equal(run(looks_ahead.stream(1), audio_BS, frames_a_push), run(looks_ahead.stream(1), audio_BS))


def test_a_frame_is_known_before_the_next_one_is_heard(causal):
    """The output can't depend on audio that wasn't pushed, and the first 15 ms of a frame already change it."""
    audio_BS = noise(4)
    other_BS = audio_BS.clone()
    other_BS[:, 3 * FRAME_SAMPLES + 100] += 1
    whole_BTH, other_BTH = encode(causal, audio_BS)[0], encode(causal, other_BS)[0]
    assert torch.equal(whole_BTH[:, :3], other_BTH[:, :3])
    assert not torch.equal(whole_BTH[:, 3], other_BTH[:, 3])


@pytest.mark.parametrize("model", ["causal", "looks_ahead"])
@pytest.mark.parametrize("at", [7, 8])
def test_a_reset_session_starts_anew_and_the_others_dont_notice(request, model, at):
    perception = request.getfixturevalue(model)
    audio_BS = noise(30, batch_size=3)
    undisturbed, disturbed = perception.stream(3), perception.stream(3)
    wanted_BTH = run(undisturbed, audio_BS)
    before_BNH = disturbed.push(audio_BS[:, : at * FRAME_SAMPLES])
    disturbed.reset([1])
    assert disturbed.waiting_rows == [1]
    after_BNH = torch.cat([disturbed.push(audio_BS[:, at * FRAME_SAMPLES :]), disturbed.flush()], dim=1)
    got_BTH = torch.cat([before_BNH, after_BNH], dim=1)
    assert torch.equal(got_BTH[[0, 2]], wanted_BTH[[0, 2]])
    fresh_BTH, _ = encode(perception, audio_BS[1:2, at * FRAME_SAMPLES :])
    lookahead = disturbed.lookahead_frames
    assert not after_BNH[1, :lookahead].any()
    assert close(after_BNH[1:2, lookahead : lookahead + 30 - at + 1], fresh_BTH)


def test_a_flushed_stream_is_as_new(looks_ahead):
    stream, audio_BS = looks_ahead.stream(2), noise(13, batch_size=2)
    first = run(stream, audio_BS)
    assert torch.equal(run(stream, audio_BS), first)
    stream.push(audio_BS)
    stream.reset()
    assert torch.equal(run(stream, audio_BS), first)


def test_a_session_that_heard_nothing_has_nothing_to_give(causal):
    stream = causal.stream(2)
    stream.push(noise(4, batch_size=2))
    stream.reset([1])
    rest_BNH = stream.flush()
    assert rest_BNH[0].any()
    assert not rest_BNH[1].any()
    assert stream.flush().shape == (2, 0, make.HIDDEN)


def test_memory_doesnt_grow(causal):
    def size():
        stacks = [x for stack in stream._stacks for memory in stack._memory for x in memory]
        return sum(x.numel() for x in [*stacks, stream._mel._heard_BS, *stream._subsampling._last.values()])

    stream = causal.stream(1)
    stream.push(noise(30))
    before = size()
    stream.push(noise(90))
    assert size() == before


def test_streams_in_inference_mode_and_out_of_it(causal):
    audio_BS = noise(8)
    with torch.inference_mode():
        stream = causal.stream(1)
        inside = stream.push(audio_BS[:, : 4 * FRAME_SAMPLES])
    outside = torch.cat([stream.push(audio_BS[:, 4 * FRAME_SAMPLES :]), stream.flush()], dim=1)
    assert close(torch.cat([inside, outside], dim=1), encode(causal, audio_BS)[0])


def test_bfloat16_weights_stream():
    perception, audio_BS = build(section()).to(torch.bfloat16), noise(40)
    streamed = run(perception.stream(1), audio_BS)
    assert streamed.dtype == torch.bfloat16
    assert close(streamed.float(), encode(perception, audio_BS)[0].float(), rtol=0.05)  # bf16 has 8 bits


@pytest.mark.parametrize(
    ("encoder", "key"),
    [
        ({"att_context_size": [-1, 0]}, r"encoder\.att_context_size is \[-1, 0\]"),
        ({"att_context_size": [20, 2], "att_context_style": "regular"}, r"encoder\.att_context_size is \[20, 2\]"),
        ({"att_context_size": [-1, -1], "att_context_style": "regular"}, r"encoder\.att_context_size is \[-1, -1\]"),
        ({"conv_context_size": None}, r"encoder\.conv_context_size is \[2, 2\]"),
        ({"conv_norm_type": "group_norm4"}, r"encoder\.conv_norm_type is group_norm4"),
        ({"causal_downsampling": False}, r"encoder\.causal_downsampling is False"),
        ({"subsampling": "stacking"}, r"encoder\.subsampling is StackingSubsampling"),
        ({"self_attention_model": "abs_pos"}, r"encoder\.self_attention_model is abs_pos"),
    ],
)
def test_what_hears_the_future_is_refused(encoder, key):
    perception = build(section(encoder))
    with pytest.raises(ValueError, match=rf"model\.perception\.{key}: a live session"):
        perception.stream(1)


@pytest.mark.parametrize(
    ("preprocessor", "key"), [({"normalize": "per_feature"}, "normalize"), ({"exact_pad": True}, "exact_pad")]
)
def test_features_of_the_whole_recording_are_refused(preprocessor, key):
    parts = section()
    parts["preprocessor"] |= preprocessor
    with pytest.raises(ValueError, match=rf"model\.perception\.preprocessor\.{key} is .*: a live session"):
        build(parts).stream(1)


def test_an_adapter_that_hears_the_future_is_refused():
    perception = build(section({}, conformer(32, 1) | {"conv_context_size": None}))
    with pytest.raises(ValueError, match=r"model\.perception\.modality_adapter\.conv_context_size is \[2, 2\]"):
        perception.stream(1)


def test_misuse_is_explained(causal):
    stream = causal.stream(2)
    with pytest.raises(ValueError, match=r"shape \[2, 1000\]: 2 sessions need .* 1280"):
        stream.push(torch.zeros(2, 1000))
    with pytest.raises(ValueError, match="2 sessions"):
        stream.push(torch.zeros(1, 1280))
    with pytest.raises(ValueError, match="no session 2"):
        stream.reset([2])
    with pytest.raises(ValueError, match="batch_size is 0"):
        causal.stream(0)
    training = build(section()).train()
    with pytest.raises(ValueError, match="training mode"):
        training.stream(1).push(torch.zeros(1, 1280))


def test_compiled_layers_hear_the_same_and_share_what_is_compiled(monkeypatch):
    """What inductor makes of a graph isn't in question here, only which graphs there are."""
    perception, audio_BS = build(demo() | {"encoder": demo()["encoder"] | {"n_layers": 12}}), noise(30)
    expected = run(perception.stream(1), audio_BS)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    stream_stages._compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        assert close(run(perception.stream(1, compile=True), audio_BS), expected)
        counters = torch._dynamo.utils.counters
        assert not counters["graph_break"]
        assert 1 <= counters["stats"]["unique_graphs"] < 6  # units, the last unit, the adapter's shape
    finally:
        stream_stages._compiled.cache_clear()
        torch._dynamo.reset()
