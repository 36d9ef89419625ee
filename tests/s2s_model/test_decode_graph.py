"""What a GPU captures as CUDA graphs, run here as it is: tensors at fixed addresses, changed in place."""

import copy
import weakref

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from s2s_model import DuplexS2SModel
from s2s_model.compiled_decoding import frame_attention
from s2s_model.cuda_graphs import GraphedFunction
from s2s_model.frame_cache import room_for
from s2s_model.frame_decoder import FrameDecoder
from s2s_model.generation import why_eager
from s2s_model.sampling import GenerationConfig, Sampling
from tests.s2s_model.builders import model_config
from tests.s2s_model.families import make_family, of_llama_shape

CPU = torch.device("cpu")
T = 24
WARM = {"text": {"temperature": 2.0}, "audio": {"temperature": 2.0}}


@pytest.fixture(scope="module")
def model(codec_path, tmp_path_factory):
    torch.manual_seed(0)
    llm = make_family("llama-tinyllama", tmp_path_factory.mktemp("llm"))
    return DuplexS2SModel(model_config(llm, codec_path)).eval()


def source(model, batch_size=2, num_frames=T):
    hidden = model.audio_head.in_features
    return torch.randn(batch_size, num_frames, hidden, generator=torch.Generator().manual_seed(0))


class Sum:
    """Adds up what it hears."""

    def __init__(self):
        self.total = torch.zeros(3)
        self.seen = set()
        self.add = GraphedFunction(self._add, CPU)

    def _add(self, x):
        self.seen.add(x.data_ptr())
        self.total.add_(x)


def test_a_graphed_function_reads_and_writes_the_same_addresses_and_dies_with_its_owner():
    owner = Sum()
    address = owner.total.data_ptr()
    with torch.inference_mode():
        owner.add(torch.full((3,), 1.0))
    for value in (2.0, 3.0, 4.0):
        owner.add(torch.full((3,), value))
    assert owner.total.tolist() == [10.0] * 3
    assert owner.total.data_ptr() == address
    assert len(owner.seen) == 1
    gone = weakref.ref(owner)
    del owner
    assert gone() is None  # at once: a session's memory must not wait for the garbage collector


@pytest.mark.parametrize(("num_frames", "heads"), [(64, (4, 4)), (64, (8, 2)), (1024, (8, 2)), (1536, (6, 1))])
def test_the_attention_of_one_frame_equals_torchs(num_frames, heads):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads[0], 1, 16, generator=generator)
    key, value = (torch.randn(2, heads[1], num_frames, 16, generator=generator) for _ in range(2))
    mask = torch.arange(num_frames) < torch.tensor([[num_frames // 3], [num_frames]])
    mask = (mask & (torch.arange(num_frames) >= 5))[:, None, None]
    expected = scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    for given in (mask, mask.expand(-1, heads[0], -1, -1)):
        torch.testing.assert_close(frame_attention(query, key, value, given, 0.3), expected)


def test_room_is_a_multiple_that_long_attention_is_cut_by():
    assert [room_for(n) for n in (1, 64, 65, 512, 513, 3751)] == [64, 64, 128, 512, 768, 3840]


def test_all_layers_share_one_compilation_and_choose_the_same_tokens(codec_path, tmp_path):
    torch.manual_seed(0)
    llm = make_family("llama-tinyllama", tmp_path)
    of_llama_shape("LlamaConfig", num_hidden_layers=6, architectures=["LlamaForCausalLM"]).save_pretrained(llm)
    model = DuplexS2SModel(model_config(llm, codec_path)).eval()
    source_BTH = source(model)
    plain = model.generate(source_BTH)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = model.generate(source_BTH, compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch.equal(compiled.text_BT, plain.text_BT)
    assert torch.equal(compiled.codes_BTK, plain.codes_BTK)
    assert type(model.frame_model().blocks[0]).__mro__[1].__name__ != "LlamaDecoderLayer"  # as it was before
    assert model.llm.config._attn_implementation == "sdpa"


def test_a_decoder_is_kept_for_the_next_batch_until_it_is_released(model):
    source_BTH = source(model)
    model.release_graphs()
    first = model.generate(source_BTH)
    (decoder,) = model._decoders._decoders.values()
    address = decoder._cache.layers[0].keys.data_ptr()
    model.generate(source(model, 3))
    second = model.generate(source_BTH[:, :20])
    assert torch.equal(first.codes_BTK[:, :20], second.codes_BTK)
    assert len(model._decoders) == 2
    assert decoder._cache.layers[0].keys.data_ptr() == address
    assert len(copy.deepcopy(model)._decoders) == 0
    gone = weakref.ref(decoder)
    del decoder
    model.release_graphs()
    assert len(model._decoders) == 0
    assert gone() is None


def test_a_kept_decoder_reads_the_weights_of_now(model):
    model = copy.deepcopy(model)
    source_BTH = source(model)
    before = model.generate(source_BTH)
    generator = torch.Generator().manual_seed(5)
    other = {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in model.state_dict().items()
        if name.startswith(("llm.", "audio_head."))
    }
    model.load_state_dict(other, strict=False)  # in place, as the optimizer changes them
    in_place = model.generate(source_BTH)
    (decoder,) = model._decoders._decoders.values()
    model.load_state_dict({name: value.clone() for name, value in other.items()}, strict=False, assign=True)
    moved = model.generate(source_BTH)
    assert model._decoders._decoders.popitem()[1] is not decoder  # a graph would read where the old ones lay
    assert not torch.equal(before.codes_BTK, in_place.codes_BTK)
    assert torch.equal(moved.codes_BTK, in_place.codes_BTK)


def test_draws_follow_the_seed_and_are_used_up(model):
    source_BTH = source(model)

    def twice(generator=None):
        return [model.generate(source_BTH, WARM, generator).codes_BTK for _ in range(2)]

    torch.manual_seed(7)
    first, second = twice()
    torch.manual_seed(7)
    assert torch.equal(twice()[0], first)
    assert not torch.equal(first, second)
    own = twice(torch.Generator().manual_seed(7))
    assert torch.equal(own[0], first)
    assert torch.equal(own[1], second)


def test_warming_up_leaves_no_trace(model):
    source_BTH = source(model)
    config = GenerationConfig(text=Sampling(temperature=2.0), audio=Sampling(temperature=2.0))
    expected = model.generate(source_BTH, config, torch.Generator().manual_seed(3))
    decoder = FrameDecoder(model.frame_model(), 2, T, CPU, config, torch.Generator().manual_seed(3))
    decoder.warm_up(source_BTH[:, 0])
    frames = [decoder.step(source_BTH[:, t]) for t in range(T)]
    assert torch.equal(torch.stack([frame.codes_BK for frame in frames], 1), expected.codes_BTK)
    heard = torch.randn(2, T * 1280, generator=torch.Generator().manual_seed(1)) * 0.1
    plain, warm = model.open_session(2), model.open_session(2)
    warm._warm_up()
    for t in range(T):
        outputs = [one.push(heard[:, t * 1280 : (t + 1) * 1280]) for one in (plain, warm)]
        assert torch.equal(outputs[0].codes_BNK, outputs[1].codes_BNK)
        assert torch.equal(outputs[0].audio_BR, outputs[1].audio_BR)


def test_resets_of_single_sessions_agree_with_compiled_layers(model):
    source_BTH = source(model)
    both = [FrameDecoder(model.frame_model(), 2, T, CPU, GenerationConfig(), compile=c) for c in (False, True)]
    for t in range(T):
        if t == 9:
            for decoder in both:
                decoder.reset([1])
                decoder.replace_last([0], 2, 3)
        plain, compiled = (decoder.step(source_BTH[:, t]) for decoder in both)
        assert torch.equal(plain.codes_BK, compiled.codes_BK)


def test_a_session_that_is_reset_forgets_what_was_not_finite(model):
    source_BTH = source(model)
    broken = source_BTH.clone()
    broken[1, 3] = torch.nan
    decoders = [FrameDecoder(model.frame_model(), 2, T, CPU, GenerationConfig()) for _ in range(2)]
    for t in range(T):
        if t == 5:
            for decoder in decoders:
                decoder.reset([1])
        healthy, recovered = (d.step(x[:, t]) for d, x in zip(decoders, (source_BTH, broken), strict=True))
        if t >= 5:
            assert torch.equal(healthy.codes_BK, recovered.codes_BK)
            assert torch.equal(healthy.text_B, recovered.text_B)
    for layer in decoders[1]._cache.layers:
        assert bool(layer.keys.isfinite().all())


def test_families_that_a_graph_cannot_hold_are_told_apart(model):
    from transformers import AutoModelForCausalLM

    assert why_eager(model.llm) is None
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    llm = AutoModelForCausalLM.from_config(of_llama_shape("LlamaConfig", rope_parameters=rope))
    assert "rotary" in why_eager(llm)
    llm = AutoModelForCausalLM.from_config(of_llama_shape("LlamaConfig"))
    llm.config._attn_implementation = "flash_attention_2"
    assert "model.attn_implementation is flash_attention_2" in why_eager(llm)
