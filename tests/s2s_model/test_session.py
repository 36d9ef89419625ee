"""A live session gives what offline inference gives, on the same audio, however it is cut into pushes."""

from pathlib import Path

import pytest
import torch
from lhotse import CutSet

from s2s_model import DuplexS2SModel
from s2s_model.codecs import decode_context
from s2s_train.config import load_config
from tests.s2s_model.builders import model_config
from tests.s2s_model.families import make_family
from tests.s2s_model.perception_builders import published_shape

ROOT = Path(__file__).parents[2]
T = 30
FRAME = 1280


@pytest.fixture(scope="module")
def model(codec_path, tmp_path_factory):
    torch.manual_seed(0)
    llm = make_family("llama-tinyllama", tmp_path_factory.mktemp("llm"))
    return DuplexS2SModel(model_config(llm, codec_path, predict_user_text=True)).eval()


def audio(batch_size, num_frames=T, seed=0):
    return torch.randn(batch_size, num_frames * FRAME, generator=torch.Generator().manual_seed(seed)) * 0.1


def offline(model, audio_BS):
    return model.offline_inference(audio_BS, torch.full((len(audio_BS),), audio_BS.shape[1]))


def run(session, audio_BS, sizes):
    """Push audio in pieces of `sizes` samples, over and over; return all outputs and the flush."""
    outputs, begin, i = [], 0, 0
    while begin < audio_BS.shape[1]:
        outputs.append(session.push(audio_BS[:, begin : begin + sizes[i % len(sizes)]]))
        begin += sizes[i % len(sizes)]
        i += 1
    return [*outputs, session.flush()]


def joined(outputs, field):
    if field in ("text", "user_text"):
        return ["".join(pieces) for pieces in zip(*(getattr(o, field) for o in outputs), strict=True)]
    return torch.cat([getattr(o, field) for o in outputs], dim=1)


@pytest.mark.parametrize("sizes", [[FRAME], [3 * FRAME], [1000, 37, 5000], [T * FRAME]])
def test_a_session_equals_offline_inference_however_the_audio_is_pushed(model, sizes):
    heard = audio(2)
    expected = offline(model, heard)
    session = model.open_session(batch_size=2)
    outputs = run(session, heard, sizes)
    assert torch.equal(joined(outputs, "tokens_BN"), expected["tokens_text"])
    assert torch.equal(joined(outputs, "codes_BNK"), expected["tokens_audio"])
    assert joined(outputs, "text") == expected["text"]
    assert joined(outputs, "user_text") == expected["user_text"]
    assert len(expected["tokens_audio"].unique()) > 3
    spoken = joined(outputs, "audio_BR")
    begin = spoken.shape[1] - expected["audio"].shape[1]
    assert not spoken[:, :begin].any()
    # The decoder's convolutions run over windows instead of the whole: float32 sums in another order.
    torch.testing.assert_close(spoken[:, begin:], expected["audio"], rtol=0, atol=1e-4)


def demo_model():
    """The demo's model at random weights, and real speech."""
    cfg = load_config(ROOT / "apps/train/conf/demo.yaml")
    cuts = CutSet.from_shar(in_dir=ROOT / "demo/corpus/heldout")
    speech = [torch.from_numpy(cut.load_audio()[0, : 76 * FRAME]) for cut in cuts.subset(first=2)]
    return DuplexS2SModel(cfg.model), torch.nn.utils.rnn.pad_sequence(speech, batch_first=True)


def published_encoder(codec_path, folder):
    """NVIDIA's streaming FastConformer-L in shape, with a small LLM; noise."""
    config = model_config(make_family("llama-tinyllama", folder / "llm"), codec_path, perception=published_shape())
    return DuplexS2SModel(config), audio(1, 76)


@pytest.mark.parametrize("which", ["demo", "published"])
def test_the_demo_model_and_a_published_encoder_stream_what_they_answer_offline(
    which, codec_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    torch.manual_seed(0)
    model, heard = demo_model() if which == "demo" else published_encoder(codec_path, tmp_path)
    model.eval()
    expected = offline(model, heard)
    outputs = run(model.open_session(batch_size=len(heard)), heard, [FRAME])
    assert torch.equal(joined(outputs, "tokens_BN"), expected["tokens_text"])
    assert torch.equal(joined(outputs, "codes_BNK"), expected["tokens_audio"])
    spoken = joined(outputs, "audio_BR")[:, -expected["audio"].shape[1] :]
    torch.testing.assert_close(spoken, expected["audio"], rtol=0, atol=1e-4)


def test_a_frame_comes_out_for_each_frame_that_goes_in(model):
    session = model.open_session()
    heard = audio(1)
    for t in range(5):
        output = session.push(heard[:, t * FRAME : (t + 1) * FRAME])
        assert output.tokens_BN.shape == (1, 1)
        assert output.audio_BR.shape == (1, 1764)
    assert session.push(heard[:, :100]).tokens_BN.shape == (1, 0)
    assert session.latency_s == pytest.approx(0.08 * (1 + decode_context(model.audio_codec).right_frames))


def test_one_session_is_reset_while_the_other_goes_on(model):
    heard = audio(2)
    session = model.open_session(batch_size=2)
    outputs = []
    for t in range(T):
        if t == 11:
            session.reset([1])
        outputs.append(session.push(heard[:, t * FRAME : (t + 1) * FRAME]))
    outputs.append(session.flush())
    codes, spoken = joined(outputs, "codes_BNK"), joined(outputs, "audio_BR")
    uncut, anew = offline(model, heard[:1]), offline(model, heard[1:, 11 * FRAME :])
    assert torch.equal(codes[0], uncut["tokens_audio"][0])
    assert torch.equal(codes[1, 11:], anew["tokens_audio"][0])
    torch.testing.assert_close(spoken[1, -anew["audio"].shape[1] :], anew["audio"][0], rtol=0, atol=1e-4)
    session.reset()
    again = run(session, heard, [FRAME])
    assert torch.equal(joined(again, "codes_BNK"), offline(model, heard)["tokens_audio"])


def test_an_interrupted_agent_reads_the_end_of_its_turn_and_the_others_go_on(model):
    heard = audio(2)
    session, reference = model.open_session(batch_size=2), model.open_session(batch_size=2)
    for t in range(8):
        session.push(heard[:, t * FRAME : (t + 1) * FRAME])
        reference.push(heard[:, t * FRAME : (t + 1) * FRAME])
    for row in (0, 1):  # an untrained model says BOS when it likes: open both turns
        for one in (session, reference):
            one._writers[row].write(model.tokenizer.bos_id)
    session.interrupt([0])
    rest = heard[:, 8 * FRAME :]
    after, uncut = run(session, rest, [FRAME]), run(reference, rest, [FRAME])
    assert torch.equal(joined(after, "codes_BNK")[1], joined(uncut, "codes_BNK")[1])
    assert not torch.equal(joined(after, "codes_BNK")[0], joined(uncut, "codes_BNK")[0])
    # As if the model itself had ended its turn there:
    told = model.open_session(batch_size=2)
    for t in range(8):
        told.push(heard[:, t * FRAME : (t + 1) * FRAME])
    told._mind.replace_last([0], model.tokenizer.eos_id, model.speech.eos_id)
    assert torch.equal(joined(run(told, rest, [FRAME]), "codes_BNK"), joined(after, "codes_BNK"))


def test_a_session_lasts_as_long_as_it_was_opened_for_and_loses_nothing_when_it_is_full(model):
    heard = audio(1, 11)
    session = model.open_session(max_duration_s=0.8)
    outputs = [session.push(heard[:, : 9 * FRAME])]
    with pytest.raises(ValueError, match=r"lasted 9 frames and would get 2 more.*opened for 10.*max_duration_s"):
        session.push(heard[:, 9 * FRAME :])
    outputs += [session.push(heard[:, 9 * FRAME : 10 * FRAME]), session.flush()]
    expected = offline(model, heard[:, : 10 * FRAME])
    assert torch.equal(joined(outputs, "codes_BNK"), expected["tokens_audio"])
    session.reset()
    session.push(heard[:, :FRAME])
    assert model.open_session(max_duration_s=2.32)._mind._max_frames == 29 + 1


def test_a_session_may_be_used_inside_and_outside_inference_mode(model):
    heard = audio(2, 6)
    with torch.inference_mode():
        session = model.open_session(batch_size=2)
        outputs = [session.push(heard[:, : 2 * FRAME])]
    session.interrupt()
    outputs.append(session.push(heard[:, 2 * FRAME : 4 * FRAME]))
    with torch.inference_mode():
        outputs += [session.push(heard[:, 4 * FRAME :]), session.flush()]
    session.reset([0])
    assert torch.equal(joined(outputs, "codes_BNK"), offline(model, heard)["tokens_audio"])


def test_a_session_that_heard_nothing_says_nothing(model):
    output = model.open_session(batch_size=2).flush()
    assert (output.tokens_BN == model.tokenizer.pad_id).all()
    assert output.text == ["", ""]


def test_wrong_use_is_told(model):
    with pytest.raises(ValueError, match=r"max_duration_s is 0\.01"):
        model.open_session(max_duration_s=0.01)
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.open_session(batch_size=0)
    session = model.open_session(batch_size=2)
    with pytest.raises(ValueError, match=r"shape \[1280\].*\[B, S\]"):
        session.push(torch.zeros(1280))
    with pytest.raises(ValueError, match=r"no session 2.*0 to 1"):
        session.reset(2)
    with pytest.raises(ValueError, match=r"audio is torch\.int16.*divide int16 by 32768"):
        session.push(torch.zeros(2, FRAME, dtype=torch.int16))
    noise = audio(2, 3)
    noise[1, 100] = float("nan")
    with pytest.raises(ValueError, match="audio of row 1 isn't finite"):
        session.push(noise)
    assert session.push(torch.zeros(2, 0)).tokens_BN.shape == (2, 0)
    with pytest.raises(ValueError, match=r"temprature.*temperature, top_k and top_p"):
        model.open_session(config={"text": {"temprature": 1}})
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        model.open_session()
    model.eval()


def test_after_a_flush_the_session_begins_anew(model):
    heard = audio(1, 6)
    session = model.open_session()
    first, second = run(session, heard, [FRAME]), run(session, heard, [2 * FRAME])
    assert torch.equal(joined(first, "codes_BNK"), joined(second, "codes_BNK"))


def test_one_call_may_sample_as_it_likes(model):
    heard = audio(1, 12)
    warm = {"text": {"temperature": 2.0}, "audio": {"temperature": 2.0}}
    session = model.open_session(config=warm, generator=torch.Generator().manual_seed(3))
    live = joined(run(session, heard, [FRAME]), "codes_BNK")
    lens = torch.tensor([heard.shape[1]])
    drawn = model.offline_inference(heard, lens, config=warm, generator=torch.Generator().manual_seed(3))
    assert torch.equal(live, drawn["tokens_audio"])
    assert not torch.equal(live, offline(model, heard)["tokens_audio"])


def test_recordings_that_are_none_are_told(model):
    heard = audio(2, 4)
    for wrong, lens, message in (
        (heard[0], torch.tensor([100]), r"shape \[5120\]"),
        (heard.numpy(), torch.tensor([100, 100]), r"shape ndarray"),
        (heard[:, :0], torch.tensor([0, 0]), r"shape \[2, 0\]"),
        (heard, torch.tensor([100]), r"input_signal_lens is \[100\].*2 recordings"),
        (heard, torch.tensor([100, 99999]), r"99999\].*5120 at most"),
    ):
        with pytest.raises(ValueError, match=message):
            model.offline_inference(wrong, lens)


def test_text_is_written_as_it_comes_and_ends_with_its_turn(model):
    from s2s_model.written_text import TextWriter, text_turns

    tokenizer = model.tokenizer
    bos, eos, pad = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
    tokens = [pad, 9, bos, 5, pad, 6, eos, 7, bos, 8, bos, 9, pad]
    writer = TextWriter(tokenizer)
    pieces = [writer.write(token) for token in tokens] + [writer.close()]
    assert pieces == ["", "", "", "w5", "", " w6", "", "", "", " w8", "", " w9", "", ""]
    assert "".join(pieces) == " ".join(text for _, _, text in text_turns(tokens, tokenizer, 0.08))
