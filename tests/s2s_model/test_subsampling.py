"""The first convolutions channels last, against NeMo's own with the same weights; on a GPU also their kernels.

Tolerance: of the norm of an output or gradient. float32: 1e-5, the same sums in another order. bfloat16: a tenth;
NeMo's own is as far from its float32, since weights are rounded and values near zero cross a ReLU.
"""

import copy

import pytest
import torch
from nemo.collections.asr.parts.submodules.conformer_modules import ConformerConvolution
from nemo.collections.asr.parts.submodules.subsampling import ConvSubsampling
from torch import nn

from s2s_model.perception.pointwise import multiply_pointwise
from s2s_model.perception.subsampling import _subsample, subsample_channels_last
from s2s_parallel.compiled import compile_in_training
from s2s_parallel.forwards import is_wrapped

FEATURES, CHANNELS, WIDTH = 20, 24, 32
BF16 = 0.1
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def build(factor=8, causal=True, subsampling="dw_striding", activation=None, **keys):
    torch.manual_seed(0)
    kind = ConvSubsampling(
        subsampling, factor, FEATURES, WIDTH, CHANNELS, activation=activation or nn.ReLU(True), is_causal=causal, **keys
    )
    encoder = nn.Module()
    encoder.pre_encode = kind
    return encoder


def pair(**keys):
    """NeMo's, and the same with `subsample_channels_last`."""
    encoder = build(**keys)
    ours = copy.deepcopy(encoder)
    assert subsample_channels_last(ours)
    return encoder.pre_encode, ours.pre_encode


def recordings(lens=(67, 40, 3)):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(lens), max(lens), FEATURES, generator=generator), torch.tensor(lens)


def results(module, x, lens):
    """Output, lengths and the gradients of all weights."""
    module.zero_grad()
    out, out_lens = module(x, lens)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    (out * weights).sum().backward()
    return out.detach(), out_lens, {name: p.grad.clone() for name, p in module.named_parameters()}


def errors(expected, actual):
    """What differs of the output and of each gradient, as a share of its norm."""
    assert actual[0].shape == expected[0].shape
    assert torch.equal(actual[1].cpu(), expected[1].cpu().long())
    assert expected[2].keys() == actual[2].keys()
    alike = {"out": (expected[0], actual[0])} | {name: (expected[2][name], actual[2][name]) for name in expected[2]}
    doubles = {name: (one.double().cpu(), other.double().cpu()) for name, (one, other) in alike.items()}
    return {name: float((one - other).norm() / one.norm()) for name, (one, other) in doubles.items()}


def assert_alike(expected, actual, within=1e-5):
    found = errors(expected, actual)
    assert max(found.values()) < within, found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("factor", [4, 8, 16])
@pytest.mark.parametrize("num_frames", [64, 65, 66, 67, 71])
def test_equals_nemo(device, causal, factor, num_frames):
    nemo, ours = pair(factor=factor, causal=causal)
    x, lens = recordings((num_frames, 40, 3))
    expected = results(nemo, x, lens)
    actual = results(ours.to(device), x.to(device), lens.to(device))
    assert_alike(expected, actual)


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16(device):
    nemo, ours = pair()
    x, lens = recordings((200, 120))
    x = x.bfloat16()
    expected = results(nemo, x.float(), lens)
    actual = results(ours.to(device, torch.bfloat16), x.to(device), lens.to(device))
    assert actual[0].dtype == torch.bfloat16
    assert_alike(expected, actual, BF16)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device):
    nemo, ours = pair()
    x, lens = recordings((200, 120))
    expected = results(nemo, x, lens)
    with torch.autocast(device, torch.bfloat16):
        actual = results(ours.to(device), x.to(device), lens.to(device))
    assert actual[0].dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in actual[2].values())
    assert_alike(expected, actual, BF16)


@pytest.mark.parametrize("device", DEVICES)
def test_what_lies_behind_a_recording_is_not_heard(device):
    _, ours = pair()
    ours.to(device)
    x, lens = recordings()
    expected = results(ours, x.to(device), lens.to(device))
    for b, end in enumerate(lens):
        x[b, end:] = 1e4
    actual = results(ours, x.to(device), lens.to(device))
    assert torch.equal(expected[0], actual[0])
    assert all(torch.equal(expected[2][name], actual[2][name]) for name in expected[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
def test_compiled():
    nemo, ours = pair()
    compile_in_training(ours.cuda())
    x, lens = recordings()
    assert_alike(results(nemo, x, lens), results(ours, x.cuda(), lens.cuda()))


def test_features_that_need_gradients_get_them():
    nemo, ours = pair()
    x, lens = recordings()
    gradients = []
    for each in (nemo, ours):
        heard = x.clone().requires_grad_()
        each(heard, lens)[0].sum().backward()
        gradients.append(heard.grad)
    torch.testing.assert_close(*gradients)


def test_a_frozen_encoder_and_copies():
    nemo, ours = pair()
    ours.requires_grad_(False)
    x, lens = recordings()
    again = copy.deepcopy(ours)
    with torch.no_grad():
        ours.out.weight.zero_()  # the copy has its own
    torch.testing.assert_close(again(x, lens)[0], nemo(x, lens)[0], rtol=1e-4, atol=1e-5)
    assert not again(x, lens)[0].requires_grad


@pytest.mark.parametrize(
    "other",
    [
        {"subsampling": "striding"},
        {"subsampling": "vggnet", "causal": False},
        {"factor": 2},
        {"activation": nn.SiLU()},
        {"subsampling_conv_chunking_factor": 2},
    ],
    ids=lambda other: "_".join(map(str, other)),
)
def test_other_kinds_stay_as_they_are(other):
    encoder = build(**other)
    assert not subsample_channels_last(encoder)
    assert not is_wrapped(encoder.pre_encode, _subsample)


# --- the layers' convolutions, which have kernels of the same kind ------------------------------------------------


def convolved(module, x):
    """Output and gradients of a Conformer's convolution: of x, then of the weights."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x, pad_mask=torch.arange(x.shape[1], device=x.device)[None] >= torch.tensor([[33], [20]]).to(x.device))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    (out * weights).sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("kernel_size", "context"), [(9, [8, 0]), (5, [2, 2]), (31, [30, 0])])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_over_time(kernel_size, context, bias, compiled):
    torch.manual_seed(0)
    encoder = nn.Module()
    encoder.layers = nn.ModuleList([nn.Module()])
    encoder.layers[0].conv = ConformerConvolution(72, kernel_size, "layer_norm", context, use_bias=bias)
    x = torch.randn(2, 33, 72)
    expected = convolved(encoder.layers[0].conv, x)
    multiply_pointwise(encoder.cuda())
    if compiled:
        compile_in_training(encoder.layers[0].conv)
    for one, other in zip(expected, convolved(encoder.layers[0].conv, x.cuda()), strict=True):
        assert (one - other.cpu()).norm() < 1e-5 * one.norm()
