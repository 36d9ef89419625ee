"""Generation with its fixed cache; that it equals the LLM reading all at once is checked in family_checks.py."""

import pytest
import torch

from s2s_model import DuplexS2SModel
from s2s_model.frame_decoder import FrameDecoder
from s2s_model.generation import check_cache
from s2s_model.sampling import GenerationConfig, Sampling
from tests.s2s_model.builders import make_batch, make_llm, model_config
from tests.s2s_model.families import make_family

GREEDY = GenerationConfig()
T = 24  # three times the sliding windows of the small families


@pytest.fixture(scope="module")
def family_model(tmp_path_factory, codec_path):
    built = {}

    def build(name):
        if name not in built:
            torch.manual_seed(0)
            llm = make_family(name, tmp_path_factory.mktemp(name))
            built[name] = DuplexS2SModel(model_config(llm, codec_path)).eval()
        return built[name]

    return build


def source(model, batch_size, num_frames=T, seed=0):
    hidden = model.audio_head.in_features
    return torch.randn(batch_size, num_frames, hidden, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", ["llama-tinyllama", "gemma2", "mistral"])
def test_a_session_that_is_reset_begins_anew_while_the_other_goes_on(family_model, family):
    model = family_model(family)
    source_BTH = source(model, 2, num_frames=2 * T)
    decoder = FrameDecoder(model.frame_model(), 2, 2 * T, torch.device("cpu"), GREEDY)
    frames = []
    for t in range(2 * T):
        if t == 10:
            decoder.reset([1])
        frames.append(decoder.step(source_BTH[:, t]))
    text = torch.stack([f.text_B for f in frames], dim=1)
    codes = torch.stack([f.codes_BK for f in frames], dim=1)
    uncut = model.generate(source_BTH)
    assert torch.equal(text[0], uncut.text_BT[0])
    assert torch.equal(codes[0], uncut.codes_BTK[0])
    anew = model.generate(source_BTH[1:, 10:])
    assert torch.equal(text[1, 10:], anew.text_BT[0])
    assert torch.equal(codes[1, 10:], anew.codes_BTK[0])


def test_room_in_the_cache_is_used_again_after_resets(family_model):
    model = family_model("gemma2")
    source_BTH = source(model, 2, num_frames=60)
    decoder = FrameDecoder(model.frame_model(), 2, 20, torch.device("cpu"), GREEDY)
    began, text = [0, 0], []
    for t in range(60):
        for row in (0, 1):
            if t and (t + 7 * row) % 16 == 0:
                decoder.reset([row])
                began[row] = t
        text.append(decoder.step(source_BTH[:, t]).text_B)
    for row in (0, 1):
        anew = model.generate(source_BTH[row : row + 1, began[row] :]).text_BT[0]
        assert began[row] > 40
        assert torch.stack(text)[began[row] :, row].tolist() == anew.tolist()


def test_a_session_longer_than_its_cache_says_so(family_model):
    model = family_model("llama-tinyllama")
    source_BTH = source(model, 2)
    decoder = FrameDecoder(model.frame_model(), 2, 5, torch.device("cpu"), GREEDY)
    for t in range(5):
        decoder.step(source_BTH[:, t])
    decoder.reset([1])
    with pytest.raises(ValueError, match=r"session 0 has lasted 5 frames.*max_duration_s"):
        decoder.step(source_BTH[:, 5])
    decoder.reset([0, 1])
    decoder.step(source_BTH[:, 5])


def test_defect_13_channels_are_sampled_each_in_its_own_way_and_the_cache_does_not_grow(family_model):
    model = family_model("llama-tinyllama")
    source_BTH = source(model, 1)
    warm = GenerationConfig(text=Sampling(temperature=2.0, top_k=20), audio=Sampling(temperature=1.0, top_p=0.9))
    runs = [model.generate(source_BTH, warm, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].codes_BTK, runs[1].codes_BTK)
    assert not torch.equal(runs[0].codes_BTK, runs[2].codes_BTK)
    assert not torch.equal(runs[0].text_BT, model.generate(source_BTH).text_BT)
    decoder = FrameDecoder(model.frame_model(), 1, T, torch.device("cpu"), GREEDY)
    decoder.step(source_BTH[:, 0])
    first = [(layer.keys.data_ptr(), layer.keys.shape) for layer in decoder._cache.layers]
    for t in range(1, T):
        decoder.step(source_BTH[:, t])
    assert [(layer.keys.data_ptr(), layer.keys.shape) for layer in decoder._cache.layers] == first


def test_padding_of_a_batch_does_not_change_what_is_generated(family_model):
    model = family_model("llama-tinyllama")
    batch = make_batch((24, 12))
    both = model.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    alone = model.offline_inference(batch["source_audio"][1:, : 12 * 1280], batch["source_audio_lens"][1:])
    length = int(both["tokens_len"][1])
    assert torch.equal(both["tokens_audio"][1, :length], alone["tokens_audio"][0])
    assert both["text"][1] == alone["text"][0]


def test_an_llm_that_ignores_the_cache_is_refused(codec_path, tmp_path):
    """Mamba takes `cache_params`, swallows `past_key_values` and would decode each frame without memory."""
    from transformers import MambaConfig

    llm = make_llm(tmp_path)
    MambaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4, architectures=["MambaForCausalLM"]
    ).save_pretrained(llm)
    with pytest.raises(ValueError, match=r"model\.pretrained_llm: MambaForCausalLM (can't read|reads otherwise)"):
        DuplexS2SModel(model_config(llm, codec_path))


def test_every_step_tells_the_attention_which_of_the_caches_frames_are_filled(family_model):
    """Without a mask flash attention reads the empty ones too."""
    model = family_model("llama-tinyllama")
    source_BTH = source(model, 2, num_frames=3)
    parts = model.frame_model()
    filled = []

    def body(**inputs):
        filled.append(inputs["attention_mask"].sum(dim=1).tolist())
        return parts.body(**inputs)

    decoder = FrameDecoder(parts._replace(body=body), 2, 5, torch.device("cpu"), GREEDY)
    for t in range(3):
        decoder.step(source_BTH[:, t])
    assert filled == [[1, 1], [2, 2], [3, 3]]


def test_it_answers_under_autocast(family_model):
    """Keys leave the rotary embedding in float32 there, values are bf16."""
    model = family_model("llama-tinyllama")
    batch = make_batch((12, 12))
    with torch.autocast("cpu", torch.bfloat16):
        answer = model.offline_inference(batch["source_audio"], batch["source_audio_lens"])
    assert answer["tokens_audio"].shape[:2] == (2, 13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_deep_llm_is_accepted_though_rounding_adds_up(dtype):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=256, num_hidden_layers=26, num_attention_heads=4
    )
    check_cache(LlamaForCausalLM(config).to(dtype))
