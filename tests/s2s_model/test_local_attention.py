"""Attention block by block and convolutions as matrix products, against NeMo's own encoder with the same weights.

Tolerance: float32, the same sums in another order. Rounding stays some ten times below 1e-4 of the largest value; a
frame too many or too few in a context, or a distance that is off by one, changes values by tenths.
"""

import copy

import pytest
import torch
from nemo.collections.asr.modules import ConformerEncoder
from torch import nn

from s2s_model.perception.local_attention import attend_locally, block_frames
from s2s_model.perception.pointwise import multiply_pointwise
from s2s_parallel.compiled import _compiled, compile_in_training
from s2s_parallel.forwards import is_wrapped
from tests.s2s_model import perception_builders as make
from tests.s2s_model.builders import conformer

WIDTH = 32
RTOL = 1e-4
CONTEXTS = {
    "70_0": ([70, 0], "chunked_limited"),
    "70_1": ([70, 1], "chunked_limited"),
    "8_3": ([8, 3], "chunked_limited"),
    "70_13": ([70, 13], "chunked_limited"),
    "0_0": ([0, 0], "chunked_limited"),
    "regular_20_0": ([20, 0], "regular"),
}
EVERY_CONTEXT = pytest.mark.parametrize(("context", "style"), CONTEXTS.values(), ids=CONTEXTS)


def build(context=(70, 0), style="chunked_limited", **keys):
    """A causal Conformer of two layers and no subsampling, whose position biases aren't zero."""
    torch.manual_seed(0)
    wanted = conformer(WIDTH, 1) | {
        "n_layers": 2,
        "n_heads": 4,
        "att_context_size": list(context),
        "att_context_style": style,
        "conv_kernel_size": 9,
        "use_pytorch_sdpa": True,
    }
    del wanted["_target_"]
    encoder = ConformerEncoder(**(wanted | keys))
    for layer in encoder.layers:
        if hasattr(layer.self_attn, "pos_bias_u"):
            nn.init.normal_(layer.self_attn.pos_bias_u)
            nn.init.normal_(layer.self_attn.pos_bias_v)
    return encoder


def both(*args, **keys):
    """NeMo's encoder, and a copy that attends locally."""
    theirs = build(*args, **keys)
    ours = copy.deepcopy(theirs)
    assert attend_locally(ours)
    return ours, theirs


def run(encoder, lens, length=None, context=None, seed=0):
    """Outputs of valid frames, gradients of a random sum of them by parameter, and of the input; on the CPU."""
    T = length or max(lens)
    device = next(encoder.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lens), WIDTH, T, generator=generator).requires_grad_()
    weights = torch.randn(len(lens), T, WIDTH, generator=generator)
    if context is not None:
        encoder.set_default_att_context_size(context)
    encoder.zero_grad()
    out_BCT, lens_B = encoder(audio_signal=x.to(device), length=torch.tensor(lens, device=device))
    out_BCT, lens_B = out_BCT.cpu(), lens_B.cpu()
    assert lens_B.tolist() == list(lens)
    valid_BT = torch.arange(T) < lens_B[:, None]
    valid = out_BCT.transpose(1, 2)[valid_BT]
    (valid * weights[valid_BT]).sum().backward()
    grads = {name: p.grad.cpu().clone() for name, p in encoder.named_parameters()}
    return valid.detach(), grads | {"input": x.grad.transpose(1, 2)[valid_BT]}


def assert_same(ours, theirs):
    assert make.close(ours[0], theirs[0], RTOL)
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(g.abs().max()) for g in theirs[1].values())
    for name, gradient in theirs[1].items():  # a sum that cancels out, as a bias of keys', has rounding of others' size
        off = float((ours[1][name] - gradient).abs().max())
        assert off <= RTOL * float(gradient.abs().max()) + 1e-6 * largest, (name, off, float(gradient.abs().max()))


# --- the same numbers ---------------------------------------------------------------------------------------


@EVERY_CONTEXT
def test_outputs_and_gradients_are_nemos(context, style):
    """Recordings below, at and above a block and two, in padded batches; the first pads most of a block away."""
    ours, theirs = both(context, style)
    chunk = context[1] + 1
    W = block_frames(context[0] // chunk * chunk, chunk)
    for lens in ([5, 2, 1], [W - 1, W // 2, 1], [W, W - 1], [W + 1, W, 3], [2 * W, W + 5], [3 * W + 7, 2 * W + 1, 4]):
        assert_same(run(ours, lens), run(theirs, lens))


@EVERY_CONTEXT
def test_a_batch_that_ends_in_padding_only_is_nemos_too(context, style):
    """Blocks without a single frame to hear: no NaN may come of them, forward or backward."""
    ours, theirs = both(context, style)
    mine = run(ours, [30, 4], length=400)
    assert all(torch.isfinite(x).all() for x in [mine[0], *mine[1].values()])
    assert_same(mine, run(theirs, [30, 4], length=400))


@pytest.mark.parametrize(("context", "style"), [CONTEXTS["70_1"], CONTEXTS["regular_20_0"]])
def test_what_stands_beyond_a_recording_changes_nothing_of_it(context, style):
    ours, _ = both(context, style)
    ours.eval()
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH, 200)
    lens = torch.tensor([200, 90])
    with torch.no_grad():
        first, _ = ours(audio_signal=x, length=lens)
        x[1, :, 90:] = 100.0
        second, _ = ours(audio_signal=x, length=lens)
        alone, _ = ours(audio_signal=x[1:, :, :90], length=lens[1:])
    assert torch.equal(first[1, :, :90], second[1, :, :90])
    assert make.close(alone[0], first[1, :, :90], RTOL)


@pytest.mark.parametrize("chosen", [[70, 13], [8, 3], [0, 0]])
def test_of_several_contexts_each_is_nemos(chosen):
    ours, theirs = both([[70, 13], [8, 3], [0, 0]])
    ours.eval(), theirs.eval()  # training draws one, see below
    assert_same(run(ours, [150, 77], context=chosen), run(theirs, [150, 77], context=chosen))


def test_several_contexts_are_drawn_in_training_as_nemo_draws_them():
    import random

    ours, theirs = both([[70, 13], [0, 0]])
    seen = set()
    for seed in range(6):
        random.seed(seed)
        mine = run(ours, [120, 50])
        random.seed(seed)
        assert_same(mine, run(theirs, [120, 50]))
        seen.add(float(mine[0].abs().sum()))
    assert len(seen) == 2


def test_without_biases_of_its_own_and_with_shared_ones():
    for keys in ({"use_bias": False}, {"untie_biases": False}, {"xscaling": False}):
        ours, theirs = both(**keys)
        assert_same(run(ours, [100, 31]), run(theirs, [100, 31]))


def test_a_batch_longer_than_any_before_has_its_positions():
    ours, theirs = both(pos_emb_max_len=20)
    assert_same(run(ours, [10]), run(theirs, [10]))
    assert_same(run(ours, [230, 30]), run(theirs, [230, 30]))


def test_dropout_of_attention_acts_in_training_only():
    ours, _ = both(dropout_att=0.5)
    torch.manual_seed(0)
    x, lens = torch.randn(1, WIDTH, 40), torch.tensor([40])
    with torch.no_grad():
        assert not torch.equal(ours(audio_signal=x, length=lens)[0], ours(audio_signal=x, length=lens)[0])
        ours.eval()
        assert torch.equal(ours(audio_signal=x, length=lens)[0], ours(audio_signal=x, length=lens)[0])


# --- what is left alone -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        {"context": [-1, -1], "style": "regular"},
        {"context": [-1, 0], "style": "chunked_limited"},
        {"context": [20, 3], "style": "regular"},
        {"context": [[70, 13], [-1, -1]], "style": "chunked_limited"},
        {"self_attention_model": "abs_pos"},
        {"context": [20, 20], "style": "regular", "self_attention_model": "rel_pos_local_attn"},
        {"use_pytorch_sdpa": False},
    ],
    ids=str,
)
def test_other_attention_and_unlimited_contexts_stay_nemos(keys):
    encoder = build(**keys)
    kinds = [type(encoder), *(type(module) for module in encoder.modules())]
    assert not attend_locally(encoder)
    assert [type(encoder), *(type(module) for module in encoder.modules())] == kinds


def test_what_isnt_a_conformer_is_left_alone():
    assert not attend_locally(nn.Linear(2, 2))
    multiply_pointwise(nn.Linear(2, 2))


def test_a_copy_attends_with_its_own_weights():
    ours, _ = both()
    other = copy.deepcopy(ours)
    before = run(ours, [90])
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not run(other, [90])[0].any()
    assert_same(run(ours, [90]), before)
    assert list(ours.state_dict()) == list(build().state_dict())


# --- memory -------------------------------------------------------------------------------------------------


def kept_for_backward(encoder, length):
    """Elements of the largest tensor, and of all, that a forward keeps."""
    sizes = {}

    def note(tensor):
        sizes[tensor.data_ptr()] = max(tensor.numel(), sizes.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        encoder(audio_signal=torch.randn(1, WIDTH, length), length=torch.tensor([length]))
    return max(sizes.values()), sum(sizes.values())


def test_memory_grows_with_the_length_not_its_square():
    ours, theirs = both()
    W = block_frames(70, 1)
    short, long = kept_for_backward(ours, 4 * W), kept_for_backward(ours, 16 * W)
    assert long[0] <= 4 * short[0]
    assert long[1] <= 4.2 * short[1]
    assert kept_for_backward(theirs, 16 * W)[0] >= 15 * kept_for_backward(theirs, 4 * W)[0]


# --- convolutions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("keys", [{}, {"use_bias": False}, {"conv_context_size": None}], ids=str)
@pytest.mark.parametrize("norm", ["batch_norm", "layer_norm"])
def test_convolutions_are_nemos(norm, keys, training):
    theirs = build(conv_norm_type=norm, **keys).train(training)
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
    ours = copy.deepcopy(theirs)
    multiply_pointwise(ours)
    assert type(ours.layers[0].conv) is not type(theirs.layers[0].conv)
    assert_same(run(ours, [40, 11]), run(theirs, [40, 11]))
    for (name, mine), (_, reference) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.allclose(mine, reference, rtol=RTOL, atol=1e-5), name
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_both_at_once_in_bf16_are_as_near_to_float32_as_nemo_is():
    theirs = build(conv_norm_type="batch_norm")
    ours = copy.deepcopy(theirs)
    attend_locally(ours)
    multiply_pointwise(ours)
    exact, _ = run(theirs, [150, 60])
    off = []
    for encoder in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            out, _ = run(encoder, [150, 60])
        off.append(float((out.float() - exact).norm() / exact.norm()))
    assert off[0] <= 1.5 * off[1] < 0.1


# --- on a GPU ------------------------------------------------------------------------------------------------

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")


@ON_GPU
@EVERY_CONTEXT
@pytest.mark.parametrize("compiled", [False, True])
def test_kernels_give_nemos_numbers(context, style, compiled):
    ours, theirs = both(context, style)
    multiply_pointwise(ours.cuda())
    if compiled:
        for layer in ours.layers:
            compile_in_training(layer)
    for lens in ([5, 2, 1], [64, 63], [150, 97, 65, 1]):
        assert_same(run(ours, lens), run(theirs, lens))
    mine = run(ours, [30, 4], length=400)
    assert all(torch.isfinite(x).all() for x in [mine[0], *mine[1].values()])
    assert_same(mine, run(theirs, [30, 4], length=400))


@ON_GPU
def test_attention_with_dropout_goes_by_blocks():
    ours, _ = both(dropout_att=0.5)
    ours.cuda()
    first, again = (run(ours, [150, 60])[0] for _ in range(2))
    assert not torch.equal(first, again)
    ours.eval()
    assert torch.equal(*(run(ours, [150, 60])[0] for _ in range(2)))


# --- compiled -----------------------------------------------------------------------------------------------


@pytest.fixture
def eager_compiler(monkeypatch):
    """What inductor makes of a graph isn't in question here, only which graphs there are on a GPU."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend="eager", **options))
    monkeypatch.setattr("s2s_parallel.compiled._compiled", lambda forward, device_type: _compiled(forward, "cuda"))
    _compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    _compiled.cache_clear()
    torch._dynamo.reset()


def test_layers_compile_whole_and_few_times_for_many_lengths(eager_compiler):
    ours, theirs = both()
    multiply_pointwise(ours)
    for layer in ours.layers:
        compile_in_training(layer)
    W = block_frames(70, 1)
    graphs = []
    for lens in ([251, 90, 2], [300, 3, 1], [2 * W] * 5, [5 * W, 8], [101, 5, 99], [626, 300], [W] * 4):
        assert_same(run(ours, lens), run(theirs, lens))
        graphs.append(eager_compiler["stats"]["unique_graphs"])
    assert not eager_compiler["graph_break"]
    assert graphs == [1, 2, 2, 2, 2, 2, 2]  # one for the first size, one for all others


def test_layers_of_perception_attend_locally_and_multiply():
    from s2s_model.perception.local_attention import _attend
    from s2s_model.perception.pointwise import _convolve

    for block in make.build(make.section()).blocks():
        assert is_wrapped(block.self_attn, _attend)
        assert is_wrapped(block.conv, _convolve)
