"""`parallel.cuda_graphs` where there is no GPU: calls go straight through; what can't be captured is refused by key.

Tolerance: padding to whole steps of 2 s moves no valid frame, but sums are taken in another order: float32, 1e-4.
"""

import copy

import pytest
import torch
from torch import nn

from s2s_model.perception.nemo import GRAPHED_FEATURES
from s2s_parallel.config import ParallelConfig, check_layout
from s2s_parallel.training_graphs import TrainingGraphs
from tests.s2s_model import perception_builders as make
from tests.s2s_model.builders import conformer

LENS = torch.tensor([30 * make.FRAME_SAMPLES, 11 * make.FRAME_SAMPLES])


def call(perception):
    """Vectors of valid frames, gradients by name, and how many frames there are with padding."""
    perception.zero_grad()
    out_BTH, frames_B = perception(input_signal=make.noise(30, 2), input_signal_length=LENS)
    valid = torch.cat([out_BTH[b, : frames_B[b]] for b in range(2)])
    if valid.requires_grad:
        valid.square().sum().backward()
    grads = {name: p.grad.clone() for name, p in perception.named_parameters() if p.grad is not None}
    return valid.detach(), grads, out_BTH.shape[1]


def both(**keys):
    """Perception in training, without graphs and with them."""
    plain = make.build(make.section(**keys)).train()
    graphed = copy.deepcopy(plain)
    graphed.graph()
    return plain, graphed


# --- without a GPU ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recompute", [False, True])
def test_on_the_cpu_a_function_is_called_as_it_is_each_time(recompute):
    layer = nn.Linear(3, 3)
    calls = []

    def function(x, lens):
        calls.append(x.shape)
        return layer(x), lens + 1

    graphs = TrainingGraphs(function, layer, recompute=recompute)
    x, lens = torch.randn(2, 3, requires_grad=True), torch.tensor([3, 1])
    for count in range(1, 4):  # a GPU would replay it from the second time on
        out, other = graphs(x, lens)
        assert len(calls) == count
        assert torch.equal(out, layer(x))
        assert other.tolist() == [4, 2]
    out.sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None


def test_training_pads_to_whole_steps_and_nothing_else_changes():
    plain, graphed = both()
    (expected, gradients, frames), (valid, own, padded) = call(plain), call(graphed)
    assert frames < padded == GRAPHED_FEATURES * 2 // 8 + 1  # 2.4 s become 4; a frame has 8 features
    assert make.close(valid, expected)
    assert own.keys() == gradients.keys()
    assert all(make.close(own[name], gradients[name]) for name in gradients)


def test_without_gradients_nothing_is_padded_so_answers_are_as_long_as_ever():
    plain, graphed = both()
    with torch.no_grad():
        (expected, _, frames), (valid, _, own) = call(plain.eval()), call(graphed.eval())
    assert own == frames
    assert torch.equal(valid, expected)


def test_checkpointing_of_the_encoder_becomes_that_of_the_graph():
    """Each layer for itself would be computed again within what is computed again as a whole."""
    plain, graphed = make.build(make.section()).train(), make.build(make.section()).train()
    for perception in (plain, graphed):
        perception.activation_checkpointing(True)
    graphed.graph()
    layers = [type(p.blocks()[0]) for p in (plain, graphed, make.build(make.section()))]
    assert layers[1] is layers[2] is not layers[0]
    (expected, gradients, _), (valid, own, _) = call(plain), call(graphed)
    assert make.close(valid, expected)
    assert all(make.close(own[name], gradients[name]) for name in gradients)


def test_a_copy_has_weights_of_its_own_and_no_graphs():
    _, graphed = both()
    other = copy.deepcopy(graphed)
    before, _, padded = call(graphed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    valid, _, frames = call(other)
    assert not valid.any()
    assert frames < padded
    assert torch.equal(call(graphed)[0], before)


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["encoder", "modality_adapter"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("stochastic_depth_drop_prob", 0.5), ("att_context_size", [[20, 0], [8, 3]])],
)
def test_chance_that_the_host_draws_is_refused_with_its_key(part, key, value):
    parts = make.section(adapter=conformer(32, 1) | {"n_layers": 2})
    parts[part] |= {key: value}
    perception = make.build(parts)
    with pytest.raises(ValueError, match=rf"parallel\.cuda_graphs: model\.perception\.{part}\.{key} .*=false"):
        perception.graph()


@pytest.mark.parametrize(
    ("model_type", "keys"), [("whisper", make.whisper_keys()), ("wav2vec2-bert", make.w2v_bert_keys())]
)
def test_other_encoders_are_refused(model_type, keys):
    perception = make.build({"encoder": {"model_type": model_type} | keys})
    with pytest.raises(ValueError, match=r"parallel\.cuda_graphs: .* can't be captured.*parallel\.cuda_graphs=false"):
        perception.graph()


def test_weights_that_are_gathered_in_each_step_are_refused():
    config = ParallelConfig(cuda_graphs=True)
    for tensor_parallel in (False, True):
        with pytest.raises(ValueError, match=r"parallel\.cuda_graphs .*parallel\.cuda_graphs=false.*DDP"):
            check_layout(config, sharded=True, tensor_parallel=tensor_parallel)
    check_layout(config, sharded=False, tensor_parallel=False)
