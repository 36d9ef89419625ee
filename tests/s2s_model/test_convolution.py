"""`convolve` against torch's own convolutions, paddings and activations; with S2S_TEST_ON_GPU=1 its kernel too.

Tolerance: of the largest value. float32: 1e-5, the same sums in another order; float16: 3e-3, its rounding.
"""

import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu, pad

from s2s_model.codecs.convolution import MULTIPLE, Ending, Span, convolve, fold

FRAMES, STEPS, SLOPE = (9, 4, 1), 12, 0.1  # frames of three examples, steps of a frame at the input's rate
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
KINDS = {
    "taps apart": lambda: nn.Conv1d(20, 40, 11, dilation=5, padding=25, padding_mode="reflect"),
    "many channels": lambda: nn.Conv1d(100, 150, 3, padding=1, padding_mode="reflect"),
    "one channel": lambda: nn.Conv1d(20, 1, 7, padding=3, padding_mode="reflect"),
    "slower": lambda: nn.Conv1d(20, 40, 6, stride=3, padding=2, padding_mode="reflect"),
    "twice as fast": lambda: nn.ConvTranspose1d(20, 10, 4, stride=2, padding=1),
    "thrice as fast": lambda: nn.ConvTranspose1d(20, 70, 6, stride=3, padding=2, output_padding=1),
    "a tap left over": lambda: nn.ConvTranspose1d(20, 10, 5, stride=2, padding=2, output_padding=1),
    "no bias": lambda: nn.Conv1d(20, 40, 3, padding=1, padding_mode="reflect", bias=False),
}


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


class Case:
    """A convolution, its input that is zero behind each example's end, and rubbish behind the batch's."""

    def __init__(self, kind, device, dtype):
        torch.manual_seed(0)
        self.conv = KINDS[kind]()
        self.folded = fold(self.conv, dtype, multiple=1 if kind == "one channel" else MULTIPLE)
        moved = (value.to(device) if isinstance(value, torch.Tensor) else value for value in self.folded)
        self.folded = type(self.folded)(*moved)
        stride = self.conv.stride[0]
        is_up = isinstance(self.conv, nn.ConvTranspose1d)
        self.steps = STEPS * stride if is_up else STEPS // stride
        self.num_steps = self.steps * max(FRAMES)
        self.frames = torch.tensor(FRAMES)
        self.span = Span(self.frames.to(device), torch.tensor([max(FRAMES)], device=device))
        self.input = torch.randn(3, STEPS * max(FRAMES), 20 if kind != "many channels" else 100)
        self.input *= torch.arange(self.input.shape[1])[:, None] < self.frames[:, None, None] * STEPS
        self.input = self.input.to(dtype).float()
        self.device, self.dtype = device, dtype

    def run(self, behind=0, **options):
        """Kept and active without the channels filled up, for a buffer that is `behind` frames longer."""
        x = pad(self.input, (0, -self.input.shape[2] % MULTIPLE, 0, behind * STEPS)).to(self.device, self.dtype)
        ending = Ending(self.steps, SLOPE, options.pop("scale", 1.0), options.pop("residual_scale", 1.0))
        num_steps = self.num_steps + behind * self.steps
        made = convolve(self.folded, ending, self.span, x, num_steps, keep=True, **options)
        for value in made:
            assert not value[:, self.num_steps :].any()
            assert not value[..., self.conv.out_channels :].any()
        return tuple(value[:, : self.num_steps, : self.conv.out_channels].float().cpu() for value in made)

    def expected(self, scale=1.0, extra=0.0):
        conv = self.conv.to(self.dtype).float()
        sums = conv(self.input.transpose(1, 2)).transpose(1, 2).detach()
        bias = 0.0 if conv.bias is None else conv.bias.detach()
        sums = sums * scale + bias * (1 - scale)
        valid = torch.arange(self.num_steps)[:, None] < self.frames[:, None, None] * self.steps
        x = sums.where(valid, 0.0) + extra
        return x, leaky_relu(x, SLOPE)

    def check(self, made, expected):
        for actual, wanted in zip(made, expected, strict=True):
            assert actual.shape == wanted.shape
            assert (actual - wanted).abs().max() <= TOLERANCE[self.dtype] * wanted.abs().max()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", list(KINDS))
def test_it_is_torchs_convolution_masked_and_activated(kind, device, dtype):
    case = Case(kind, device, dtype)
    case.check(case.run(), case.expected())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["taps apart", "slower", "thrice as fast"])
def test_a_batch_in_a_longer_buffer_mirrors_at_its_own_end(kind, device):
    case = Case(kind, device, torch.float32)
    case.check(case.run(behind=5), case.expected())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["taps apart", "many channels", "no bias"])
def test_residuals_come_behind_the_mask_with_their_scales(kind, device):
    case = Case(kind, device, torch.float32)
    residual, partial = torch.randn(2, 3, case.num_steps, case.conv.out_channels)
    filled = [pad(value, (0, -value.shape[2] % MULTIPLE)).to(device) for value in (residual, partial)]
    made = case.run(scale=0.25, residual_scale=0.5, residual_BTC=filled[0], partial_BTC=filled[1])
    case.check(made, case.expected(0.25, 0.5 * residual + partial))


@pytest.mark.parametrize("device", DEVICES)
def test_what_float16_cannot_hold_becomes_its_largest(device):
    case = Case("taps apart", device, torch.float16)
    kept, active = case.run(scale=1e6)
    assert kept.abs().max() == torch.finfo(torch.float16).max
    assert active.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_not_asked_for_is_empty_and_another_dtype_is_given(device):
    case = Case("one channel", device, torch.float16)
    x = pad(case.input, (0, -20 % MULTIPLE)).to(device, torch.float16)
    arguments = (case.folded, Ending(case.steps, SLOPE), case.span, x, case.num_steps)
    kept, nothing = convolve(*arguments, keep=True, activate=False, dtype=torch.float32)
    assert (kept.dtype, nothing.numel()) == (torch.float32, 0)
    nothing, active = convolve(*arguments)
    assert (active.dtype, nothing.numel()) == (torch.float16, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or S2S_TEST_ON_GPU isn't set")
@pytest.mark.parametrize("channels", [16, 27, 48, 54, 96, 108, 192, 432])
def test_the_kernel_is_the_reference_at_every_width(channels):
    torch.manual_seed(0)
    conv = fold(nn.Conv1d(channels, channels, 7, padding=9, dilation=3), torch.float16)
    x = torch.randn(2, 4000, conv.weight_KIO.shape[1]).half()
    frames, end = torch.tensor([40, 31]), torch.tensor([40])
    options = {"residual_BTC": torch.randn(2, 4000, len(conv.bias_C)).half(), "keep": True}
    expected = convolve(conv, Ending(100, SLOPE), Span(frames, end), x, 4000, **options)
    options["residual_BTC"] = options["residual_BTC"].cuda()
    moved = conv._replace(weight_KIO=conv.weight_KIO.cuda(), bias_C=conv.bias_C.cuda())
    made = convolve(moved, Ending(100, SLOPE), Span(frames.cuda(), end.cuda()), x.cuda(), 4000, **options)
    for actual, wanted in zip(made, expected, strict=True):
        assert (actual.cpu().float() - wanted.float()).abs().max() <= 3e-3 * wanted.float().abs().max()
