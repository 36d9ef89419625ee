"""Linear layers of few rows, and those of one input together.

    S2S_TEST_ON_GPU=1 python -m pytest tests/s2s_model/test_skinny_linear.py

Tolerance on a GPU: sums are taken in float32, which leaves 1e-4 of the largest number, and the rounding of the result,
at most half of its last place.
"""

import pytest
import torch
from torch import nn
from torch._dynamo import lookup_backend
from torch.nn.functional import linear

from s2s_model import DuplexS2SModel, compiled_decoding, skinny_linear
from s2s_model.frame_decoder import FrameDecoder
from s2s_model.lora import inject_lora
from s2s_model.sampling import GenerationConfig
from s2s_model.skinny_linear import MAX_ROWS, group_linears, has_kernel, skinny_linears
from tests.s2s_model.builders import model_config
from tests.s2s_model.families import make_family, of_llama_shape

OP = torch.ops.s2s_model.skinny_linears.default
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")


def products(sizes, rows=(2, 1), width=64, seed=0, biases=None):
    """An input, weights and biases; every other weight has a bias unless it is said which have."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*rows, width, generator=generator)
    weights = [torch.randn(size, width, generator=generator) * width**-0.5 for size in sizes]
    drawn = [torch.randn(size, generator=generator) for size in sizes]
    chosen = biases if biases is not None else [index % 2 == 0 for index in range(len(sizes))]
    return x, weights, [bias if has else None for bias, has in zip(drawn, chosen, strict=True)]


@pytest.mark.parametrize("rows", [(), (1,), (2, 1), (3, 5)], ids=str)
@pytest.mark.parametrize("sizes", [(3,), (16, 1), (16, 8, 8, 5)], ids=str)
def test_the_op_is_linear_of_each(rows, sizes):
    x, weights, biases = products(sizes, rows)
    outs = skinny_linears(x, weights, biases)
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        torch.testing.assert_close(out, linear(x, weight, bias))
    torch.library.opcheck(OP, (x, weights, biases))


# --- groups in a graph --------------------------------------------------------------------------------------


def one_dtype(x, weight, bias, out):
    return x.dtype == weight.dtype == out.dtype


class Grouped:
    """Torch's backend of that name, after linear layers were grouped; `sizes` of the groups of each graph."""

    def __init__(self, backend="eager", is_wanted=one_dtype):
        self.sizes = []
        self._backend = lookup_backend(backend)
        self._is_wanted = is_wanted

    def __call__(self, graph_module, example_inputs):
        group_linears(graph_module, self._is_wanted)
        self.sizes.append([len(node.args[1]) for node in graph_module.graph.nodes if node.target is OP])
        return self._backend(graph_module, example_inputs)


@torch.no_grad()
def sizes_of(function, *args, backend="eager", is_wanted=one_dtype, **kwargs):
    """The groups of the one graph that a function compiles to; that its results are the same is checked."""
    torch._dynamo.reset()
    grouped = Grouped(backend, is_wanted)
    compiled = torch.compile(function, backend=grouped)
    torch.testing.assert_close(compiled(*args, **kwargs), function(*args, **kwargs))
    (sizes,) = grouped.sizes
    return sizes


def layer_of(class_name, lora=None, **traits):
    """A family's first layer, and what it is called with for a frame of two sessions."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(of_llama_shape(class_name, **traits)).eval()
    if lora is not None:
        inject_lora(llm, lora)
    hidden = torch.randn(2, 1, llm.config.hidden_size)
    places = torch.tensor([[5], [3]])
    return llm.model.layers[0], {
        "hidden_states": hidden,
        "position_ids": places,
        "position_embeddings": llm.model.rotary_emb(hidden, places),
    }


@pytest.mark.parametrize(
    ("class_name", "sizes"),
    [
        ("LlamaConfig", [3, 1, 2, 1]),
        ("Qwen2Config", [3, 1, 2, 1]),  # with biases
        ("Phi3Config", [1, 1, 1, 1]),  # has one weight for queries, keys and values already
    ],
)
def test_layers_of_one_input_are_one_call(class_name, sizes):
    layer, called_with = layer_of(class_name)
    for parameter in layer.parameters():  # biases start at zero
        nn.init.normal_(parameter, std=0.2)
    assert sizes_of(layer, **called_with) == sizes


def test_adapters_join_the_layers_beside_them():
    layer, called_with = layer_of("LlamaConfig", {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False})
    sizes = sizes_of(layer, **called_with)
    assert sizes[0] == 4  # queries, their A, keys and values
    assert sum(sizes) == 7 + 4


def test_inductor_takes_groups_and_other_numbers_of_rows():
    layer, called_with = layer_of("LlamaConfig")
    assert sizes_of(layer, backend="inductor", **called_with) == [3, 1, 2, 1]
    x, weights, biases = products((16, 8))

    def few_rows(x, weight, bias, out):
        return x.shape[0] <= MAX_ROWS

    torch._dynamo.reset()
    grouped = Grouped("inductor", few_rows)
    compiled = torch.compile(
        lambda x: [linear(x, *each) for each in zip(weights, biases, strict=True)], backend=grouped
    )
    with torch.no_grad():
        for num_rows in (2, 5, MAX_ROWS, MAX_ROWS + 1):
            x = torch.randn(num_rows, 1, 64)
            torch.testing.assert_close(compiled(x), skinny_linears(x, weights, biases))
    assert grouped.sizes == [[2], [2], []]


def test_layers_of_different_inputs_stay_apart():
    first, second, third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    assert sizes_of(lambda x: (first(x), second(x + 1), third(x)), torch.randn(2, 8)) == [2, 1]
    chain = nn.Sequential(first, second, third)
    assert sizes_of(chain, torch.randn(2, 8)) == [1, 1, 1]


def test_however_linear_is_called():
    x, (first, second, third, fourth), _ = products((8, 4, 2, 3))

    def all_ways(x):
        aten = torch.ops.aten.linear
        return linear(x, first), linear(input=x, weight=second, bias=None), aten(x, third), aten.default(x, fourth)

    assert sizes_of(all_ways, x) == [4]


def test_a_fifth_begins_another_group():
    x, weights, biases = products((8, 4, 2, 3, 5))
    assert sizes_of(lambda x: [linear(x, *each) for each in zip(weights, biases, strict=True)], x) == [4, 1]


def test_a_weight_that_is_computed_later_begins_another_group():
    x, (first, second), _ = products((8, 4))
    assert sizes_of(lambda x: (y := linear(x, first), linear(x, second * y.sum())), x) == [1, 1]


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.add_(1),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: torch.mul(x, 2, out=x),
        lambda x: nn.functional.relu(x, inplace=True),
        lambda x: nn.functional.relu(x, True),
        nn.Hardtanh(inplace=True),
        lambda x: torch.ops.aten.add_(x, 1),
    ],
)
def test_no_group_extends_over_a_write(write):
    x, (first, second), _ = products((8, 4))

    def function(x):
        x = x + 0
        y = linear(x, first)
        write(x)
        return y, linear(x, second)

    assert sizes_of(function, x) == [1, 1]


def test_autocast_and_what_has_no_kernel_are_left_alone():
    layer, called_with = layer_of("LlamaConfig")

    def autocast(**called_with):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(**called_with)

    assert sizes_of(autocast, **called_with) == []
    assert sizes_of(layer.bfloat16(), is_wanted=has_kernel, **_in_bf16(called_with)) == []


def _in_bf16(called_with):
    cos, sin = called_with["position_embeddings"]
    called_with["position_embeddings"] = cos.bfloat16(), sin.bfloat16()
    return called_with | {"hidden_states": called_with["hidden_states"].bfloat16()}


def test_generation_with_grouped_layers_chooses_the_same(monkeypatch, codec_path, tmp_path):
    torch.manual_seed(0)
    model = DuplexS2SModel(model_config(make_family("llama-tinyllama", tmp_path), codec_path)).eval()
    source_BTH = torch.randn(2, 24, model.audio_head.in_features)
    plain = model.generate(source_BTH)
    wanted = []
    monkeypatch.setattr(compiled_decoding, "has_kernel", lambda *example: wanted.append(example) or one_dtype(*example))
    torch._dynamo.reset()
    compiled = model.generate(source_BTH, compile=True)
    torch._dynamo.reset()  # other tests must not find these graphs
    assert len(wanted) == 7
    assert torch.equal(compiled.text_BT, plain.text_BT)
    assert torch.equal(compiled.codes_BTK, plain.codes_BTK)


def fakes(device="cuda", dtype=torch.bfloat16, rows=(8, 1), width=64, biased=True, out_dtype=None):
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(*rows, width, dtype=dtype, device=device)
        weight = torch.empty(16, width, dtype=dtype, device=device)
        bias = torch.empty(16, dtype=dtype, device=device) if biased else None
        return x, weight, bias, torch.empty(*rows, 16, dtype=out_dtype or dtype, device=device)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, True),
        ({"biased": False}, True),
        ({"dtype": torch.float16}, True),
        ({"rows": (MAX_ROWS,)}, True),
        ({"rows": ()}, True),
        ({"rows": (MAX_ROWS + 1,)}, False),
        ({"rows": (0, 1)}, False),
        ({"width": 68}, False),
        ({"dtype": torch.float32}, False),
        ({"out_dtype": torch.float32}, False),
        ({"device": "cpu"}, False),
    ],
    ids=str,
)
def test_what_the_kernel_takes(monkeypatch, keys, expected):
    monkeypatch.setattr(skinny_linear, "find_spec", lambda name: name == "triton")
    assert has_kernel(*fakes(**keys)) is expected


def test_the_kernel_takes_plain_contiguous_tensors_without_gradients_where_there_is_triton(monkeypatch):
    x, weight, bias, out = fakes()
    monkeypatch.setattr(skinny_linear, "find_spec", lambda name: None)
    assert not has_kernel(x, weight, bias, out)
    monkeypatch.setattr(skinny_linear, "find_spec", lambda name: name == "triton")
    assert not has_kernel(x, fakes(rows=(64,), width=16)[0].t(), bias, out)
    assert not has_kernel(x, weight, bias, out.requires_grad_())
    x.__tensor_flatten__ = None  # as DTensor has it
    assert not has_kernel(x, weight, bias, fakes()[-1])


# --- on a GPU ------------------------------------------------------------------------------------------------


@ON_GPU
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [64, 72, 2048, 5632])
@pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 16, 17, 32])
@pytest.mark.parametrize(
    ("sizes", "biases"),
    [((1,), [True]), ((16, 100), None), ((256, 1, 2048), None), ((2048, 256, 256, 16), [False] * 4), ((11264,), None)],
)
def test_the_kernel_rounds_the_exact_products(sizes, biases, num_rows, width, dtype):
    x, weights, biases = products(sizes, (num_rows, 1), width, biases=biases)
    x, weights = x.to("cuda", dtype), [weight.to("cuda", dtype) for weight in weights]
    biases = [None if bias is None else bias.to("cuda", dtype) for bias in biases]
    outs = skinny_linears(x, weights, biases)
    for out, weight, bias in zip(outs, weights, biases, strict=True):
        exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
        assert out.dtype == dtype
        assert out.shape == exact.shape
        off = (out.double() - exact).abs() - exact.abs() * torch.finfo(dtype).eps / 2
        assert float(off.max()) <= 1e-4 * float(exact.abs().max())
    again = skinny_linears(x, weights, biases)
    assert all(torch.equal(*each) for each in zip(outs, again, strict=True))


@ON_GPU
def test_the_kernel_reads_what_lies_unaligned_or_apart():
    x, (weight,), _ = products((48,), (7,), 72)
    exact = linear(x.bfloat16().double(), weight.bfloat16().double()).bfloat16()
    room = torch.empty(48 * 72 + 1, dtype=torch.bfloat16, device="cuda")
    unaligned = room[1:].view(48, 72).copy_(weight)
    apart = x.t().contiguous().to("cuda", torch.bfloat16).t()
    torch.testing.assert_close(skinny_linears(apart, [unaligned], [None])[0].cpu(), exact)
    torch.library.opcheck(OP, (apart, [unaligned], [None]))


@ON_GPU
def test_generation_in_bf16_uses_the_kernel_and_chooses_the_same(monkeypatch, codec_path, tmp_path):
    from s2s_model import skinny_linear_triton

    sizes = []
    kernel = skinny_linear_triton.linears_cuda

    def counted(x, weights, biases):
        sizes.append(len(weights))
        return kernel(x, weights, biases)

    monkeypatch.setattr(skinny_linear_triton, "linears_cuda", counted)
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = DuplexS2SModel(model_config(make_family("llama-tinyllama", tmp_path), codec_path)).eval()
    model = model.to("cuda", torch.bfloat16)
    source_BTH = torch.randn(2, 40, model.audio_head.in_features).to("cuda", torch.bfloat16)
    plain, compiled = (
        FrameDecoder(model.frame_model(), 2, 40, source_BTH.device, GenerationConfig(), compile=c)
        for c in (False, True)
    )
    same = []
    for t in range(40):
        frames = [decoder.step(source_BTH[:, t]) for decoder in (plain, compiled)]
        same += [(own == wanted).float().mean() for own, wanted in zip(*(frame[:2] for frame in frames), strict=True)]
        for decoder in (plain, compiled):  # one near tie must not lead all later frames apart
            decoder.replace_last([0, 1], 3, 2)
    assert float(torch.stack(same).mean()) >= 0.95
    assert set(sizes) == {3, 1, 2}
