"""Losses of heads without logits: value and gradients against torch's cross entropy of the logits.

Tolerances: in float64 both do the same arithmetic in another order, but our losses and weights are float32, which
leaves 1e-5 of the largest value. In bf16 each gradient is rounded once at the logits and once at the end, 2**-9 each
time: 2 % of the largest value is several times what is seen, and a tenth of what one wrong label would make.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from s2s_model import DuplexS2SModel, head_loss
from s2s_model.channels import DuplexInputs
from s2s_model.head_loss import can_reduce, let_reduce, linear_cross_entropy
from s2s_model.llm import logit_scale_and_cap
from tests.s2s_model.builders import make_batch

N, H = 23, 16
SHAPES = {"text": (1, 40), "codebooks": (3, 12)}  # K, C
EXACT, BF16 = 1e-5, 2e-2


def leaves(K, C, dtype=torch.float64, bias=True, seed=0):
    """Hidden states, weight and bias that want gradients."""
    torch.manual_seed(seed)
    shapes = [(N, H), (K * C, H), *([(K * C,)] if bias else [])]
    tensors = [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]
    return tensors if bias else [*tensors, None]


def labels_and_weights(K, C):
    """Every third frame doesn't count."""
    torch.manual_seed(1)
    weights_NK = torch.rand(N, K) + 0.1
    weights_NK[::3] = 0.0
    return {"labels_NK": torch.randint(0, C, (N, K)), "weights_NK": weights_NK}


def by_logits(hidden, weight, bias, labels_NK, weights_NK, scale=1.0, cap=0.0):
    logits = linear(hidden, weight, bias).unflatten(1, (labels_NK.shape[1], -1)) * scale
    logits = cap * torch.tanh(logits / cap) if cap else logits
    losses_NK = cross_entropy(logits.flatten(0, 1), labels_NK.flatten(), reduction="none").view(labels_NK.shape)
    return (losses_NK * weights_NK).sum()


def gradients(loss, tensors):
    return torch.autograd.grad(loss, [t for t in tensors if t is not None and t.requires_grad])


def assert_close(ours, theirs, rtol):
    """Equal up to `rtol` of the largest value."""
    for mine, reference in zip(ours, theirs, strict=True):
        assert mine.shape == reference.shape
        assert reference.abs().max() > 0
        assert (mine.double() - reference.double()).abs().max() <= rtol * reference.double().abs().max()


# --- the function -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.25, 0.0), (2.0, 3.0)])
@pytest.mark.parametrize("kind", SHAPES)
def test_value_and_gradients_are_those_of_the_logits(monkeypatch, kind, scale, cap, bias, pieces):
    K, C = SHAPES[kind]
    if pieces > 1:  # 5 of 5 frames, the last one of 3
        monkeypatch.setattr(head_loss, "LOGITS_OF_A_PIECE", 5 * K * C + 1)
    tensors, how = leaves(K, C, bias=bias), labels_and_weights(K, C)
    ours = linear_cross_entropy(*tensors, **how, scale=scale, cap=cap)
    theirs = by_logits(*tensors, **how, scale=scale, cap=cap)
    assert ours.dtype == torch.float32
    assert float(ours) == pytest.approx(float(theirs), rel=EXACT)
    assert_close(gradients(ours * 0.37, tensors), gradients(theirs * 0.37, tensors), EXACT)


def test_a_piece_holds_a_frame_even_where_the_vocabulary_is_larger(monkeypatch):
    K, C = SHAPES["text"]
    tensors, how = leaves(K, C), labels_and_weights(K, C)
    whole = linear_cross_entropy(*tensors, **how)
    monkeypatch.setattr(head_loss, "LOGITS_OF_A_PIECE", C // 2)
    assert float(linear_cross_entropy(*tensors, **how)) == pytest.approx(float(whole), rel=EXACT)


@pytest.mark.parametrize("kind", SHAPES)
def test_bf16_is_off_by_its_rounding_only(kind):
    K, C = SHAPES[kind]
    tensors, how = leaves(K, C, torch.bfloat16), labels_and_weights(K, C)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    ours, theirs = linear_cross_entropy(*tensors, **how), by_logits(*exact, **how)
    assert float(ours) == pytest.approx(float(theirs), rel=5e-3)
    own = gradients(ours, tensors)
    assert all(g.dtype == torch.bfloat16 for g in own)
    assert_close(own, gradients(theirs, exact), BF16)


def test_what_the_loss_is_divided_by_is_not_rounded_to_bf16():
    """1/357 in bf16 is off by 0.2 %: all of a head's gradients would be. Rounding of each cancels in their sum."""
    tensors, how = leaves(*SHAPES["text"], torch.bfloat16), labels_and_weights(*SHAPES["text"])
    (whole,) = gradients(linear_cross_entropy(*tensors, **how), tensors[:1])
    (divided,) = gradients(linear_cross_entropy(*tensors, **how) / 357, tensors[:1])
    assert float(divided.double().abs().sum() * 357 / whole.double().abs().sum()) == pytest.approx(1.0, abs=5e-4)


def test_autocast_computes_in_bf16_and_gives_float32_gradients():
    K, C = SHAPES["codebooks"]
    tensors, how = leaves(K, C, torch.float32), labels_and_weights(K, C)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy(*tensors, **how)
    theirs = by_logits(*exact, **how)
    own = gradients(ours, tensors)
    assert ours.dtype == torch.float32
    assert all(g.dtype == torch.float32 for g in own)
    in_float32 = gradients(linear_cross_entropy(*tensors, **how), tensors)
    assert not torch.equal(own[0], in_float32[0])
    assert float(ours) == pytest.approx(float(theirs), rel=5e-3)
    assert_close(own, gradients(theirs, exact), BF16)


@pytest.mark.parametrize("frozen", [(1, 2), (0,), (2,), (0, 1)])
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(frozen):
    K, C = SHAPES["codebooks"]
    tensors, how = leaves(K, C), labels_and_weights(K, C)
    reference = gradients(by_logits(*tensors, **how), tensors)
    for index in frozen:
        tensors[index].requires_grad_(False)
    linear_cross_entropy(*tensors, **how).backward()
    assert all(tensors[index].grad is None for index in frozen)
    trained = [index for index in range(3) if index not in frozen]
    assert_close([tensors[i].grad for i in trained], [reference[i] for i in trained], EXACT)


def test_without_gradients_the_value_is_the_same():
    tensors, how = leaves(*SHAPES["text"]), labels_and_weights(*SHAPES["text"])
    with torch.no_grad():
        silent = linear_cross_entropy(*tensors, **how)
    assert not silent.requires_grad
    assert torch.equal(silent, linear_cross_entropy(*tensors, **how).detach())


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_of_weight_zero_change_nothing_whatever_they_hold(dtype, size):
    K, C = SHAPES["codebooks"]
    how = labels_and_weights(K, C)
    padding = how["weights_NK"][:, 0] == 0
    results = []
    for hidden_size, label in ((1.0, 0), (size, C - 1)):
        tensors = leaves(K, C, dtype)
        with torch.no_grad():
            tensors[0][padding] *= hidden_size
        how["labels_NK"][padding] = label
        loss = linear_cross_entropy(*tensors, **how)
        results.append([loss.detach(), *gradients(loss, tensors)])
    for plain, huge in zip(*results, strict=True):
        assert torch.equal(plain, huge)
    assert not results[1][1][padding].any()


def test_no_frames_make_no_loss():
    tensors = leaves(*SHAPES["text"])
    tensors[0] = torch.zeros(0, H, dtype=torch.float64, requires_grad=True)
    loss = linear_cross_entropy(*tensors, labels_NK=torch.zeros(0, 1, dtype=torch.long), weights_NK=torch.zeros(0, 1))
    assert float(loss) == 0
    assert all(not g.any() for g in gradients(loss, tensors))


def test_memory_kept_for_backward_is_that_of_the_gradients_not_of_logits():
    K, C, frames = 1, 4000, 64
    weight = torch.randn(C, H, requires_grad=True)
    hidden = torch.randn(frames, H, requires_grad=True)
    sizes: list[int] = []

    def note(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        linear_cross_entropy(
            hidden, weight, None, labels_NK=torch.zeros(frames, K, dtype=torch.long), weights_NK=torch.ones(frames, K)
        )
    assert sorted(sizes) == [frames * H, C * H]


# --- which heads take it ------------------------------------------------------------------------------------


class Scaled(nn.Linear):
    """A linear layer with a forward of its own, as adapters and quantised layers are."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_only_plain_linear_heads_reduce():
    head, other = nn.Linear(H, 8), Scaled(H, 8)
    assert not can_reduce(head)
    let_reduce(head)
    let_reduce(other)
    assert can_reduce(head)
    assert not can_reduce(other)
    x = torch.randn(3, H)
    assert torch.equal(head(x), linear(x, head.weight, head.bias))
    assert head(x, lambda hidden, weight, bias: (hidden, weight, bias)) == (x, head.weight, head.bias)


def test_float16_overflows_in_sums_so_it_takes_logits():
    head = nn.Linear(H, 8)
    let_reduce(head)
    assert not can_reduce(head.half())
    assert can_reduce(head.bfloat16())
    with torch.autocast("cpu", torch.float16):
        assert not can_reduce(head.float())


def test_a_head_shared_by_tensor_parallel_peers_takes_logits(tmp_path):
    """A mesh of one process is enough: placements are what counts."""
    from torch.distributed.tensor import distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for axis, reduces in (("tensor_parallel", False), ("data_parallel", True)):
            mesh = torch.distributed.init_device_mesh("cpu", (1,), mesh_dim_names=(axis,))
            head = nn.Linear(H, 8)
            let_reduce(head)
            head.weight = nn.Parameter(distribute_tensor(head.weight.detach(), mesh))
            assert can_reduce(head) is reduces
    finally:
        torch.distributed.destroy_process_group()


# --- the network --------------------------------------------------------------------------------------------

PLAIN: dict[str, object] = {}
EVERYTHING = {
    "predict_user_text": True,
    "codebook_loss_weight": [3, 1],
    "token_loss_weight": {"pad": 0.3, "bos": 2.0, "eos": 1.5, "text": 0.7},
}


def build(config, **overrides):
    torch.manual_seed(0)
    return DuplexS2SModel(config | overrides)


def losses_and_gradients(model, batch):
    model.zero_grad()
    sums = model(batch)
    sums.objective(model.cfg).backward()
    values = {name: float(value) for name, value in sums.named().items()} | {"num_frames": int(sums.num_frames)}
    return values, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def take_logits(monkeypatch):
    monkeypatch.setattr("s2s_model.network.can_reduce", lambda head: False)


@pytest.mark.parametrize("overrides", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_both_ways_of_a_network_agree_on_a_padded_batch(config, monkeypatch, overrides):
    model = build(config, **overrides)
    heads = [model.llm.get_output_embeddings(), model.audio_head, *([model.asr_head] if overrides else [])]
    assert all(can_reduce(head) for head in heads)
    batch = make_batch((24, 9, 15))
    values, reduced = losses_and_gradients(model, batch)
    take_logits(monkeypatch)
    reference, by_logits_ = losses_and_gradients(model, batch)
    assert values == pytest.approx(reference, rel=EXACT)
    assert reduced.keys() == by_logits_.keys()
    # A parameter that nearly cancels out has rounding of the others' size.
    largest = max(float(g.abs().max()) for g in by_logits_.values())
    for name, gradient in by_logits_.items():
        assert (reduced[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6 * largest, name


@pytest.mark.parametrize("key", ["logit_scale", "final_logit_softcapping"])
def test_a_familys_scale_and_cap_of_logits_are_in_the_loss(config, monkeypatch, key):
    model = build(config)
    plain, _ = losses_and_gradients(model, make_batch((12,)))
    setattr(model.llm.config, key, 0.05)
    assert logit_scale_and_cap(model.llm) in ((0.05, 0.0), (1.0, 0.05))
    values, _ = losses_and_gradients(model, make_batch((12,)))
    take_logits(monkeypatch)
    reference, _ = losses_and_gradients(model, make_batch((12,)))
    assert values == pytest.approx(reference, rel=EXACT)
    assert values["text_loss"] != pytest.approx(plain["text_loss"], rel=1e-3)
    assert values["audio_loss"] == pytest.approx(plain["audio_loss"], rel=EXACT)


def test_adapters_of_the_head_are_in_the_loss(config):
    """A LoRA head isn't a linear layer any more: it has to be asked for its logits."""
    model = build(config, lora={"r": 2, "target_modules": ["lm_head"]})
    assert not can_reduce(model.llm.get_output_embeddings())
    batch = make_batch((12, 7))
    before, gradients_ = losses_and_gradients(model, batch)
    adapters = {name: p for name, p in model.named_parameters() if "lora_B" in name}
    assert adapters
    assert all(gradients_[name].abs().max() > 0 for name in adapters)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_()
    after, _ = losses_and_gradients(model, batch)
    assert after["text_loss"] != pytest.approx(before["text_loss"], rel=1e-3)


def test_loss_of_training_is_that_of_validation(model):
    batch = make_batch((20, 6))
    with torch.no_grad():
        sums, (validated, _) = model(batch), model.loss_and_statistics(batch)
    assert float(sums.text) == pytest.approx(float(validated.text), rel=EXACT)
    assert float(sums.audio) == pytest.approx(float(validated.audio), rel=EXACT)
    assert int(sums.num_frames) == int(validated.num_frames)


def test_what_stands_in_padding_changes_no_gradient(model):
    batch = make_batch((18, 6))
    with torch.no_grad():
        inputs = model.prepare_inputs(batch)
    padding = ~inputs.valid_BT

    def gradients_of(inputs: DuplexInputs):
        model.zero_grad()
        model.loss_sums(inputs).objective(model.cfg).backward()
        return [p.grad.clone() for p in (model.audio_head.weight, model.llm.get_output_embeddings().weight)]

    plain = gradients_of(inputs)
    source_BTH, labels_BT, codes_BTK = (
        x.clone() for x in (inputs.source_BTH, inputs.text_labels_BT, inputs.code_labels_BTK)
    )
    source_BTH[padding], labels_BT[padding], codes_BTK[padding] = 50.0, 7, 1
    other = gradients_of(replace(inputs, source_BTH=source_BTH, text_labels_BT=labels_BT, code_labels_BTK=codes_BTK))
    assert_close(other, plain, EXACT)
