"""All codecs through one interface; tiny real models, plus the demo's trained NeMo codec."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import pad

from s2s_model.codecs import check_codec_rate, decode_context, load_codec
from s2s_model.codecs.huggingface import samples_per_frame
from s2s_model.codecs.stream import CodecStream
from tests.s2s_model.builders import make_codec
from tests.s2s_model.codec_builders import MAKERS, make_encodec, make_mimi, make_nemo, noise

DEMO_CODEC = str(Path(__file__).parents[2] / "demo" / "codec.nemo")
HUGGING_FACE = ("mimi", "encodec", "dac")
KINDS = (*HUGGING_FACE, "nemo")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codecs")
    return {kind: make(folder / kind) for kind, make in MAKERS.items()} | {"demo": DEMO_CODEC}


@pytest.fixture(scope="module")
def codecs(paths):
    return {kind: load_codec(path) for kind, path in paths.items()}


@pytest.fixture(params=KINDS)
def codec(request, codecs):
    return codecs[request.param]


def batch(codec, *frames):
    """Noise of so many frames, a few samples short of whole ones, and zeros behind."""
    lens_B = torch.tensor([int(n * codec.samples_per_frame) - 7 for n in frames])
    audio_BS = torch.zeros(len(frames), int(lens_B.max()))
    for b, length in enumerate(lens_B.tolist()):
        audio_BS[b, :length] = noise(length, seed=b)[0]
    return audio_BS, lens_B


def test_frames_and_samples_are_counted_alike_by_all(codec):
    size = codec.samples_per_frame
    audio_BS, lens_B = batch(codec, 5, 2)
    codes_BTK, frames_B = codec.encode(audio_BS, lens_B)
    assert codes_BTK.shape == (2, 5, codec.num_codebooks)
    assert codes_BTK.dtype == torch.int64
    assert 0 <= codes_BTK.min() <= codes_BTK.max() < codec.codebook_size
    assert frames_B.tolist() == [5, 2]
    decoded_BS, samples_B = codec.decode(codes_BTK, frames_B)
    assert decoded_BS.shape == (2, 5 * size)
    assert decoded_BS.dtype == torch.float32
    assert samples_B.tolist() == [5 * size, 2 * size]
    assert decoded_BS[1, : 2 * size].any()
    assert not decoded_BS[1, 2 * size :].any()
    assert codec.frame_rate == pytest.approx(12.5)
    check_codec_rate(codec, 0.08)


def test_codes_follow_the_sound(codec):
    audio_BS, lens_B = batch(codec, 20)
    codes_BTK, _ = codec.encode(audio_BS, lens_B)
    assert (codes_BTK[0, 1:] != codes_BTK[0, :-1]).any(dim=1).float().mean() > 0.5
    silence_K = codec.silence_codes()
    assert silence_K.shape == (codec.num_codebooks,)
    assert (codes_BTK[0] != silence_K).any()


@pytest.mark.parametrize("filling", [9.0, float("nan")])
def test_what_lies_behind_an_examples_samples_changes_nothing(codec, filling):
    audio_BS, lens_B = batch(codec, 6, 3)
    expected_BTK, frames_B = codec.encode(audio_BS, lens_B)
    audio_BS[1, lens_B[1] :] = filling
    assert torch.equal(codec.encode(audio_BS, lens_B)[0], expected_BTK)
    expected_BS, _ = codec.decode(expected_BTK, frames_B)
    codes_BTK = expected_BTK.clone()
    codes_BTK[1, frames_B[1] :] = -1
    decoded_BS, samples_B = codec.decode(codes_BTK, frames_B)
    assert torch.equal(decoded_BS[1, : samples_B[1]], expected_BS[1, : samples_B[1]])


def test_a_batch_longer_than_its_longest_example_has_a_code_for_each_of_its_frames(codec):
    audio_BS, lens_B = batch(codec, 4)
    longer_BS = torch.nn.functional.pad(audio_BS, (0, 3 * codec.samples_per_frame))
    codes_BTK, frames_B = codec.encode(longer_BS, lens_B)
    assert codes_BTK.shape[1] == 7
    assert frames_B.tolist() == [4]


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_a_single_frame_is_enough(codec, num_frames):
    codes_BTK, frames_B = codec.encode(*batch(codec, num_frames))
    assert codes_BTK.shape[1] == num_frames
    audio_BS, samples_B = codec.decode(codes_BTK, frames_B)
    assert audio_BS.shape[1] == samples_B.item() == num_frames * codec.samples_per_frame
    assert audio_BS.any()


@pytest.mark.parametrize("kind", ["mimi", "encodec"])
def test_a_causal_codec_gives_an_example_the_same_codes_alone_and_in_a_longer_batch(codecs, kind):
    """From 7 frames on: EnCodec starts by mirroring its first 6."""
    audio_BS, lens_B = batch(codecs[kind], 12, 8)
    together_BTK, _ = codecs[kind].encode(audio_BS, lens_B)
    alone_BTK, _ = codecs[kind].encode(audio_BS[1:, : lens_B[1]], lens_B[1:])
    assert torch.equal(together_BTK[1, :8], alone_BTK[0])


def test_float32_whatever_precision_surrounds_it(codec, paths):
    """300 frames: more than bf16 can count."""
    audio_BS, lens_B = batch(codec, 300)
    codes_BTK, frames_B = codec.encode(audio_BS, lens_B)
    audio, _ = codec.decode(codes_BTK, frames_B)
    kind = codec.fingerprint.split("-", maxsplit=1)[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        loaded = load_codec(paths[kind])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            again_BTK, again_B = loaded.encode(audio_BS, lens_B)
            again, _ = loaded.decode(again_BTK, again_B)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again_BTK, codes_BTK)
    assert again_B.tolist() == [300]
    assert torch.equal(again, audio)


def test_what_was_made_in_inference_mode_serves_in_training(paths):
    for kind in KINDS:
        with torch.inference_mode():
            codec = load_codec(paths[kind])
            audio_BS, lens_B = batch(codec, 3)
            inferred_BTK, _ = codec.encode(audio_BS, lens_B)
            silence_K = codec.silence_codes()
        codes_BTK, frames_B = codec.encode(*batch(codec, 3))
        assert torch.equal(codes_BTK, inferred_BTK)
        table = torch.nn.Embedding(codec.codebook_size, 2)
        (table(codes_BTK) + table(silence_K)).sum().backward()
        assert table.weight.grad.any()
        assert not codec.decode(codes_BTK, frames_B)[0].requires_grad


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_fewer_codebooks_are_the_first_ones(codecs, paths, kind):
    whole = codecs[kind]
    some = load_codec(paths[kind], num_codebooks=2)
    audio_BS, lens_B = batch(whole, 5)
    codes_BTK, frames_B = some.encode(audio_BS, lens_B)
    assert torch.equal(codes_BTK, whole.encode(audio_BS, lens_B)[0][..., :2])
    assert some.decode(codes_BTK, frames_B)[0].any()
    assert some.fingerprint != whole.fingerprint
    with pytest.raises(ValueError, match=f"have 2 codebooks.*decodes {whole.num_codebooks}"):
        whole.decode(codes_BTK, frames_B)


@pytest.mark.parametrize(
    ("kind", "number", "choices"),
    [("mimi", 7, "1, 2, 3, 4, 5, 6"), ("encodec", 3, "2, 4"), ("dac", 0, "1, 2, 3"), ("nemo", 3, "2 alone")],
)
def test_a_number_of_codebooks_it_lacks_is_refused_with_those_that_work(paths, kind, number, choices):
    with pytest.raises(ValueError, match=rf"^model\.codec: num_codebooks is {number}, .* works with {choices}$"):
        load_codec(paths[kind], key="model.codec", num_codebooks=number)


@pytest.mark.parametrize(
    ("make", "setting", "reason"),
    [
        (make_encodec, {"normalize": True}, "normalizes or chunks"),
        (make_encodec, {"chunk_length_s": 1.0, "overlap": 0.01}, "normalizes or chunks"),
        (make_encodec, {"norm_type": "time_group_norm"}, "over all frames"),
        (make_encodec, {"audio_channels": 2}, "2 audio channels"),
        (make_mimi, {"audio_channels": 2}, "2 audio channels"),
    ],
)
def test_codecs_whose_codes_alone_are_not_the_audio_are_refused(tmp_path, make, setting, reason):
    with pytest.raises(ValueError, match=f"^codec: this .*{reason}"):
        load_codec(make(tmp_path, **setting))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_codec_is_the_same_codec(codecs, paths, tmp_path, kind):
    codec = codecs[kind] if kind == "nemo" else load_codec(paths[kind], num_codebooks=2)
    codec.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = load_codec(str(tmp_path))
    assert again.fingerprint == codec.fingerprint
    assert again.num_codebooks == 2
    audio_BS, lens_B = batch(codec, 6)
    codes_BTK, frames_B = codec.encode(audio_BS, lens_B)
    assert torch.equal(again.encode(audio_BS, lens_B)[0], codes_BTK)
    assert torch.equal(again.decode(codes_BTK, frames_B)[0], codec.decode(codes_BTK, frames_B)[0])
    assert again.parameter_names() == codec.parameter_names()


def test_more_codebooks_than_it_was_saved_with_are_there_for_who_asks(paths, codecs, tmp_path):
    load_codec(paths["mimi"], num_codebooks=2).save_pretrained(tmp_path)
    assert load_codec(str(tmp_path), num_codebooks=6).fingerprint == codecs["mimi"].fingerprint


def test_a_saved_nemo_codec_holds_nothing_of_its_training(codecs, tmp_path):
    codecs["nemo"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "nemo_audio_codec"
    assert not {"discriminator", "optim"} & config["nemo"].keys()
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "discriminator" in name]


def test_the_demo_codec_keeps_the_fingerprint_stored_with_the_demo_corpus(codecs):
    assert codecs["demo"].fingerprint == "nemo-d3a6eea20216db2c"


def test_a_nemo_codec_with_another_rate_out_than_in_is_spoken_to_at_the_rate_out(tmp_path):
    overrides = {"sample_rate": 11025, "output_sample_rate": 22050, "samples_per_frame": 882}
    encoder = {"down_sample_rates": [2, 3, 3, 7, 7]}
    codec = load_codec(make_nemo(tmp_path, **overrides, audio_encoder=encoder))
    assert (codec.sample_rate, codec.samples_per_frame, codec.frame_rate) == (22050, 1764, 12.5)
    codes_BTK, frames_B = codec.encode(*batch(codec, 5, 2))
    assert frames_B.tolist() == [5, 2]
    assert codes_BTK.shape[1] == 5
    assert codec.decode(codes_BTK, frames_B)[0].shape == (2, 5 * 1764)


def test_codebooks_of_unequal_size_are_refused(paths):
    from nemo.collections.tts.models import AudioCodecModel
    from nemo.collections.tts.modules.audio_codec_modules import FiniteScalarQuantizer

    from s2s_model.codecs.nemo import NemoCodec

    model = AudioCodecModel.restore_from(paths["nemo"], map_location="cpu")
    model.vector_quantizer.fsqs[1] = FiniteScalarQuantizer(num_levels=[5, 5])
    with pytest.raises(ValueError, match=r"^codec: .*codebooks have 20, 25 entries"):
        NemoCodec(model)


def test_a_folder_that_is_no_codec_says_what_it_is(tmp_path, llm_dir):
    with pytest.raises(ValueError, match=r"^model\.x: .* needs a config\.json with a model_type"):
        load_codec(str(tmp_path), key="model.x")
    with pytest.raises(ValueError, match=r"is a 'llama', .* one of dac, encodec, mimi, nemo_audio_codec"):
        load_codec(llm_dir)
    with pytest.raises(FileNotFoundError, match=r"^model\.x: no folder"):
        load_codec(str(tmp_path / "none"), key="model.x")
    (tmp_path / "codec.nemo").touch()
    with pytest.raises(FileNotFoundError, match=r"^model\.x: no folder .*: did you mean .*/codec\.nemo\?$"):
        load_codec(str(tmp_path / "codec"), key="model.x")


def test_a_name_that_nobody_knows_says_what_both_said(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else the hub is asked six times
    with pytest.raises(
        ValueError,
        match=r"^model\.x: no codec 'no-such-codec': it is no folder .*=/path\)\. transformers says: .*NeMo says: .+",
    ) as e:
        load_codec("no-such-codec", key="model.x")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", KINDS)
def test_incomplete_weights_are_refused_not_filled_in(codecs, tmp_path, kind):
    codecs[kind].save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in weights if "decoder" in name)
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^codec: .*1 tensors"):
        load_codec(str(tmp_path))


@pytest.mark.parametrize("kind", ["nemo", "demo", "dac"])
def test_windows_decoded_with_their_context_are_the_whole(codecs, kind):
    codec = codecs[kind]
    left, right, exact = decode_context(codec, 32)
    assert exact
    T, window, size = 30, 5, codec.samples_per_frame
    codes_BTK = torch.randint(
        codec.codebook_size, (1, T, codec.num_codebooks), generator=torch.Generator().manual_seed(3)
    )

    def decode(start, end, left, right):
        first, last = max(start - left, 0), min(end + right, T)
        audio_BS, _ = codec.decode(codes_BTK[:, first:last], torch.tensor([last - first]))
        return audio_BS[:, (start - first) * size : (end - first) * size]

    whole_BS = decode(0, T, 0, 0)
    starts = range(0, T, window)
    pieces_BS = torch.cat([decode(start, start + window, left, right) for start in starts], dim=1)
    assert whole_BS.abs().max() > 0.01
    torch.testing.assert_close(pieces_BS, whole_BS, atol=1e-5, rtol=0)
    if left:  # the measure isn't merely generous
        short_BS = torch.cat([decode(start, start + window, left - 1, right) for start in starts], dim=1)
        assert not torch.equal(short_BS, pieces_BS)


@pytest.mark.parametrize("kind", [*KINDS, "demo"])
@pytest.mark.parametrize(("num_frames", "newest"), [(20, 1), (20, 3), (20, 20), (5, 1), (2, 2), (1, 1)])
def test_the_newest_frames_alone_are_the_end_of_the_whole(codecs, kind, num_frames, newest):
    codec = codecs[kind]
    shape = (2, num_frames, codec.num_codebooks)
    codes_BTK = torch.randint(codec.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    whole_BS, _ = codec.decode(codes_BTK, torch.full((2,), num_frames))
    expected = whole_BS[:, -newest * codec.samples_per_frame :]
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(codec.decode_newest(codes_BTK, newest), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("newest", [1, 3])
def test_sequences_that_begin_at_different_frames_are_decoded_at_once(codecs, newest):
    codec, lens = codecs["demo"], (14, 5, 1)
    assert codec.decodes_beginnings
    shape = (len(lens), max(lens), codec.num_codebooks)
    codes_BTK = torch.randint(codec.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    newest_BS = codec.decode_newest(codes_BTK, newest, torch.tensor(lens))
    all_there_BS = codec.decode_newest(codes_BTK, newest)
    size = newest * codec.samples_per_frame
    for audio_S, all_there_S, codes_TK, length in zip(newest_BS, all_there_BS, codes_BTK, lens, strict=True):
        alone_BS, _ = codec.decode(codes_TK[None, -length:], torch.tensor([length]))
        expected_S = pad(alone_BS[0], (size, 0))[-size:]  # silence where there was nothing yet
        torch.testing.assert_close(audio_S, expected_S, rtol=0, atol=1e-6)
        assert torch.allclose(audio_S, all_there_S, atol=1e-4) == (length == max(lens)), "what was before counts"


def check_streams_that_begin_at(begins, stream, codec, device, atol):
    """Each of them, frame by frame, has to sound as its codes decoded at once."""
    num_frames = 20  # the demo's window is 12 frames
    shape = (len(begins), num_frames, codec.num_codebooks)
    codes_BTK = torch.randint(codec.codebook_size, shape, generator=torch.Generator().manual_seed(0)).to(device)
    pieces = []
    for t in range(num_frames):
        stream.reset([row for row, begin in enumerate(begins) if begin == t])
        pieces.append(stream.push(codes_BTK[:, t : t + 1]))
    heard_BS = torch.cat([*pieces, stream.flush()], dim=1)
    held_back = stream.lookahead_frames * codec.samples_per_frame
    for audio_S, codes_TK, begin in zip(heard_BS, codes_BTK, begins, strict=True):
        alone_BS, _ = codec.decode(codes_TK[None, begin:], torch.tensor([num_frames - begin], device=device))
        assert alone_BS.abs().max() > 1e-3
        begun_S = audio_S[begin * codec.samples_per_frame + held_back :]
        torch.testing.assert_close(begun_S, alone_BS[0], rtol=0, atol=atol)


# EnCodec isn't among them: at its beginning it mirrors what is to come.
@pytest.mark.parametrize("kind", ["demo", "mimi", "dac", "nemo"])
def test_streams_that_begin_at_different_times_sound_as_if_decoded_at_once(codecs, kind, monkeypatch):
    begins, device = (0, 3, 4, 16), torch.device("cpu")
    stream = CodecStream(codecs[kind], len(begins), device)
    if kind == "demo":
        assert stream._width == 12
        monkeypatch.setattr(stream, "_decode", None)  # all of them by the one call that a GPU replays
    check_streams_that_begin_at(begins, stream, codecs[kind], device, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
def test_on_a_gpu_one_graph_decodes_streams_that_begin_at_different_times(paths):
    codec, begins, device = load_codec(paths["demo"]), (0, 3, 16), torch.device("cuda")
    stream = CodecStream(codec, len(begins), device)
    stream.warm_up()
    assert stream._advance.is_captured
    check_streams_that_begin_at(begins, stream, codec, device, atol=1e-4)


@pytest.mark.parametrize("kind", ["mimi", "encodec"])
def test_a_decoder_that_remembers_without_end_says_so(codecs, kind):
    left, right, exact = decode_context(codecs[kind], 12)
    assert (left, right, exact) == (12, 0, False)


def test_a_decoder_s_context_is_measured_on_the_cpu(codecs, monkeypatch):
    codec = codecs["demo"]
    expected = decode_context(codec, 33)
    moves = []

    def move(device):
        moves.append(device.type)
        codec.device = device

    monkeypatch.setattr(codec, "device", torch.device("cuda"))
    monkeypatch.setattr(codec, "_move_to", move)
    assert decode_context(codec, 34)[:2] == expected[:2]
    assert moves[0] == "cpu", "a GPU's float16 rounds otherwise where frames far away are others"
    assert moves[-1] == "cuda"


def test_published_rates_follow_from_the_configs():
    from transformers import DacConfig, EncodecConfig, MimiConfig

    dac = DacConfig(sampling_rate=44100, downsampling_ratios=[2, 4, 8, 8])
    for config, rate in ((MimiConfig(), 12.5), (EncodecConfig(), 75.0), (dac, 86.13)):
        assert config.sampling_rate / samples_per_frame(config) == pytest.approx(rate, abs=0.01)


def test_a_codec_of_another_rate_is_refused_with_both_numbers(tmp_path):
    codec = load_codec(make_codec(tmp_path / "fast.nemo", rates=(2, 3, 7, 7)))
    with pytest.raises(ValueError, match=r"makes 75 frames a second.*asks for 12\.5"):
        check_codec_rate(codec, 0.08)
    check_codec_rate(codec, 1 / 75)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_with_the_key(codecs, tmp_path, kind):
    codecs[kind].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"^model\.x: .* can't be loaded as a"):
        load_codec(str(tmp_path), key="model.x")
