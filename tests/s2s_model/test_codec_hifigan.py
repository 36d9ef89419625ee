"""The fast way to run NeMo's HiFi-GAN codecs against NeMo's own, on the CPU: the same arithmetic in plain torch."""

import logging

import pytest
import torch

from s2s_model.codecs import load_codec
from s2s_model.codecs.hifigan_coding import HiFiGANCoding, hifigan_coding
from tests.s2s_model.codec_builders import make_encodec, make_nemo, noise
from tests.s2s_model.test_codecs import DEMO_CODEC

FULL = {"resblock_kernel_sizes": [3, 7, 11, 5], "resblock_dilation_sizes": [1, 3]}  # four blocks of two pairs


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_nemo(tmp_path_factory.mktemp("hifigan"), audio_decoder=FULL)


@pytest.fixture(scope="module")
def own(path):
    return load_codec(path)


@pytest.fixture(scope="module")
def fast(path):
    return with_fast_way(load_codec(path))


def with_fast_way(codec):
    """A codec on the CPU that codes as it would on a GPU, but in float32."""
    codec._coding = hifigan_coding(codec._model, "float32", "codec")
    assert codec._coding is not None
    return codec


def speech_like(num_samples, seed):
    """Vowels of changing pitch, with pauses."""
    time_S = torch.arange(num_samples) / 22050
    phase_S = torch.cumsum(2 * torch.pi * (120 + 40 * torch.sin(3 * time_S + seed)) / 22050, dim=0)
    voice_S = sum(torch.sin(k * phase_S) / k for k in range(1, 12))
    syllables_S = (torch.sin(2 * torch.pi * 2.5 * time_S + seed) > -0.3).float()
    return (0.1 * voice_S * syllables_S + 0.002 * noise(num_samples, seed=seed)[0])[None]


def batch(codec, make, *frames):
    """Audio of so many frames, one sample short of them, and rubbish behind."""
    lens_B = torch.tensor([n * codec.samples_per_frame - 1 for n in frames])
    audio_BS = torch.full((len(frames), int(lens_B.max())), 5.0)
    for b, length in enumerate(lens_B.tolist()):
        audio_BS[b, :length] = make(length, seed=b)[0]
    return audio_BS, lens_B


@pytest.mark.parametrize("make", [noise, speech_like])
@pytest.mark.parametrize("frames", [(1,), (2, 3), (4,), (5, 1), (12, 7, 12, 3), (71, 20)])
def test_codes_and_audio_are_nemos(own, fast, make, frames):
    audio_BS, lens_B = batch(own, make, *frames)
    codes_BTK, frames_B = own.encode(audio_BS, lens_B)
    fast_BTK, fast_B = fast.encode(audio_BS, lens_B)
    assert torch.equal(fast_B, frames_B)
    assert torch.equal(fast_BTK, codes_BTK)
    codes_BTK = torch.randint(own.codebook_size, codes_BTK.shape, generator=torch.Generator().manual_seed(0))
    decoded_BS, samples_B = own.decode(codes_BTK, frames_B)
    assert decoded_BS.abs().max() > 0.01
    fast_BS, fast_samples_B = fast.decode(codes_BTK, frames_B)
    assert torch.equal(fast_samples_B, samples_B)
    torch.testing.assert_close(fast_BS, decoded_BS, atol=2e-6, rtol=0)


def test_a_batch_longer_than_its_longest_example_has_nemos_codes(own, fast):
    audio_BS, lens_B = batch(own, noise, 9, 6)
    longer_BS = torch.nn.functional.pad(audio_BS, (0, 90 * own.samples_per_frame))
    assert torch.equal(fast.encode(longer_BS, lens_B)[0], own.encode(longer_BS, lens_B)[0])


def test_latents_are_nemos_before_rounding_to_codes_hides_a_difference(own, fast):
    frames_B = torch.tensor([9, 4, 1])
    audio_BS, _ = batch(own, noise, *frames_B.tolist())
    audio_BS = torch.nn.functional.pad(audio_BS, (0, 1))
    lens_B = frames_B * own.samples_per_frame
    audio_BS = audio_BS.where(torch.arange(audio_BS.shape[1]) < lens_B[:, None], 0.0)
    expected_BDT, _ = own._model.audio_encoder(audio=audio_BS, audio_len=lens_B)
    latents_BDT = fast._coding.latents(audio_BS, frames_B)
    assert expected_BDT.std() > 0.1
    torch.testing.assert_close(latents_BDT, expected_BDT, atol=1e-5 * expected_BDT.abs().max().item(), rtol=0)


def test_more_than_fits_at_once_is_coded_in_pieces(own, fast, monkeypatch):
    monkeypatch.setattr("s2s_model.codecs.hifigan_coding.ENCODED_AT_ONCE", 32)
    monkeypatch.setattr("s2s_model.codecs.hifigan_coding.DECODED_AT_ONCE", 32)
    audio_BS, lens_B = batch(own, speech_like, 20, 5, 12, 1, 9)
    codes_BTK, frames_B = own.encode(audio_BS, lens_B)
    assert torch.equal(fast.encode(audio_BS, lens_B)[0], codes_BTK)
    torch.testing.assert_close(
        fast.decode(codes_BTK, frames_B)[0], own.decode(codes_BTK, frames_B)[0], atol=2e-6, rtol=0
    )


def test_a_codec_with_another_rate_out_than_in(tmp_path):
    overrides = {"sample_rate": 11025, "output_sample_rate": 22050, "samples_per_frame": 882}
    path = make_nemo(tmp_path, **overrides, audio_encoder={"down_sample_rates": [2, 3, 3, 7, 7]})
    own, fast = load_codec(path), with_fast_way(load_codec(path))
    audio_BS, lens_B = batch(own, noise, 8, 5)
    codes_BTK, _ = own.encode(audio_BS, lens_B)
    assert torch.equal(fast.encode(audio_BS, lens_B)[0], codes_BTK)


def test_float16_differs_no_more_than_its_rounding(own, path):
    """It keeps 10 bits, as TF32 does; about 1 of 100 latents lies that near to the edge between two codes."""
    codec = load_codec(path)
    codec._coding = HiFiGANCoding(codec._model, torch.float16)
    audio_BS, lens_B = batch(own, speech_like, 10, 6)
    codes_BTK, frames_B = own.encode(audio_BS, lens_B)
    half_BTK, _ = codec.encode(audio_BS, lens_B)
    assert (half_BTK == codes_BTK).float().mean() > 0.95
    expected_BS, _ = own.decode(codes_BTK, frames_B)
    decoded_BS, _ = codec.decode(codes_BTK, frames_B)
    assert decoded_BS.dtype == torch.float32
    error = (decoded_BS - expected_BS).norm() / expected_BS.norm()
    assert 0 < error < 3e-3


def too_loud(path):
    """The same function with activations in the middle that float16 can't hold."""
    codec = load_codec(path)
    encoder = codec._model.audio_encoder
    with torch.no_grad():
        for conv in (encoder.down_sample_conv_layers[0].conv, encoder.pre_conv.conv):
            conv.parametrizations.weight.original0.mul_(1e4)
            conv.bias.mul_(1e4)
    return codec


def test_float16_is_left_where_it_overflows_and_the_log_says_so(path, caplog):
    codec = too_loud(path)
    with caplog.at_level(logging.WARNING, "s2s_model"):
        coding = hifigan_coding(codec._model, None, "codec")
    assert any("torch.float16 it differs by" in message for message in caplog.messages)
    audio_BS, lens_B = batch(codec, noise, 9)
    codes_BTK, _ = codec.encode(audio_BS, lens_B)
    codec._coding = coding
    assert torch.equal(codec.encode(audio_BS, lens_B)[0], codes_BTK)


def test_float16_that_was_asked_for_and_overflows_is_an_error(path):
    with pytest.raises(ValueError, match=r"^model\.x: precision is float16, but .* differs by .*: leave it out$"):
        hifigan_coding(too_loud(path)._model, "float16", "model.x")


@pytest.mark.parametrize("precision", ["float16", None])
def test_loud_sound_stays_in_range_and_the_probe_lets_a_sound_codec_pass(path, caplog, precision):
    with caplog.at_level(logging.INFO, "s2s_model"):
        assert hifigan_coding(load_codec(path)._model, precision, "codec") is not None
    assert not caplog.messages


def test_the_codec_stays_what_it_was(path, tmp_path):
    codec = load_codec(path)
    before = {name: value.clone() for name, value in codec._model.state_dict().items()}
    with_fast_way(codec)
    assert codec._model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in codec._model.state_dict().items())
    codec.save_pretrained(tmp_path)
    assert load_codec(str(tmp_path)).fingerprint == codec.fingerprint


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"audio_encoder": {"activation": "elu"}}, "activation is ELU"),
        ({"audio_decoder": {"pad_mode": "zeros"}}, "pad_mode is zeros"),
        ({"audio_decoder": {"n_groups_equal_to_out_channels": True}}, "grouped"),
    ],
)
def test_what_the_fast_way_does_not_know_is_left_to_nemo(tmp_path, caplog, settings, reason):
    path = make_nemo(tmp_path, **settings)
    with caplog.at_level(logging.INFO, "s2s_model"):
        assert hifigan_coding(load_codec(path)._model, None, "codec") is None
    assert reason in caplog.text
    with pytest.raises(ValueError, match=rf"^model\.x: precision is float16, but .*{reason}"):
        load_codec(path, key="model.x", precision="float16")


def test_codecs_without_a_fast_way_refuse_float16(tmp_path):
    with pytest.raises(ValueError, match=r"^model\.x: precision is float16, .*MultiResolutionSTFTEncoder"):
        load_codec(DEMO_CODEC, key="model.x", precision="float16")
    with pytest.raises(ValueError, match=r"^model\.x: precision is float16, but .* runs in float32 alone"):
        load_codec(make_encodec(tmp_path), key="model.x", precision="float16")
    assert load_codec(DEMO_CODEC, precision="float32").fingerprint == load_codec(DEMO_CODEC).fingerprint


def test_a_precision_that_nobody_has_is_refused(path):
    with pytest.raises(ValueError, match=r"^model\.audio_codec_precision: 'bfloat16' is no precision: use float16 or"):
        load_codec(path, key="model.x", precision="bfloat16", precision_key="model.audio_codec_precision")
