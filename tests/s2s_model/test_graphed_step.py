"""`parallel.cuda_graphs` where there is no GPU: steps pad and go straight through; what can't be captured is refused.

Tolerance: padding to whole steps of 2 s moves no valid frame, but sums are taken in another order: float32, 1e-4.
"""

import copy

import pytest
import torch
from torch import nn

from s2s_model import DuplexS2SModel
from s2s_model.graphed_step import STEP_FRAMES
from s2s_parallel.config import ParallelConfig, check_layout
from s2s_parallel.training_graphs import Results, TrainingGraphs
from tests.s2s_model import perception_builders as make
from tests.s2s_model.builders import conformer, make_batch


def losses_and_gradients(model, batch):
    model.zero_grad()
    sums = model(batch)
    sums.objective(model.cfg).backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {**sums.named(), "frames": sums.num_frames}, grads


def close(mine, wanted):
    scale = max(x.abs().max() for x in wanted.values())
    return mine.keys() == wanted.keys() and all((mine[k] - wanted[k]).abs().max() <= 1e-4 * scale for k in wanted)


@pytest.mark.parametrize("keys", [{}, {"predict_user_text": True, "codebook_loss_weight": [2.0, 1.0]}])
@pytest.mark.parametrize("frames", [(30, 17), (25, 25), (7,)])
def test_a_step_that_pads_has_the_losses_and_gradients_of_one_that_does_not(config, keys, frames):
    torch.manual_seed(0)
    model = DuplexS2SModel(config | keys)
    batch = make_batch(frames)
    expected, gradients = losses_and_gradients(model, batch)
    shapes = []
    model.llm.get_input_embeddings().register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    model.graph()
    losses, own = losses_and_gradients(model, batch)
    assert shapes[-1][1] % STEP_FRAMES == STEP_FRAMES - 1  # the last frame is a label only
    assert losses["frames"] == expected["frames"]
    assert all(torch.allclose(losses[name], expected[name], rtol=1e-5) for name in expected)
    assert close(own, gradients)


def test_streams_that_differ_are_named_at_the_next_wait(config, caplog):
    model = DuplexS2SModel(config)
    model.graph()
    batch = make_batch((30, 30))
    batch["target_token_lens"] = torch.tensor([30, 20])
    model(batch)
    assert "differ" not in caplog.text
    model.report_spreads()
    assert "differ by 11 frames" in caplog.text or "differ by 10 frames" in caplog.text


def test_validation_neither_pads_nor_replays(config):
    model = DuplexS2SModel(config)
    batch = make_batch((30, 17))
    model.eval()
    with torch.no_grad():
        expected = model.loss_and_statistics(batch)[0]
        model.graph()
        assert torch.equal(model.loss_and_statistics(batch)[0].text, expected.text)
        assert torch.equal(model(batch).text, expected.text)


def test_on_the_cpu_a_function_is_called_as_it_is_each_time():
    layer, calls = nn.Linear(3, 3), []

    def function(x, lens):
        calls.append(x.shape)
        return Results((layer(x),), (lens + 1,))

    graphs = TrainingGraphs(function, layer)
    x = torch.randn(2, 3)
    for count in range(1, 4):  # a GPU would replay it from the second time on
        (out,), (other,) = graphs(x, torch.tensor([3, 1]))
        assert len(calls) == count
        assert torch.equal(out, layer(x))
        assert other.tolist() == [4, 2]
    assert graphs.num_captured == 0


def test_a_copy_of_a_graphed_model_has_no_graphs(config):
    model = DuplexS2SModel(config)
    model.graph()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.audio_head.weight.zero_()
        other.audio_head.bias.zero_()
    batch = make_batch((10,))
    even = torch.log(torch.tensor(float(model.speech.vocab_size)))
    assert torch.isclose(other(batch).audio / other(batch).num_frames, even, rtol=1e-4)
    assert not torch.isclose(model(batch).audio / model(batch).num_frames, even, rtol=1e-4)


# --- refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["encoder", "modality_adapter"])
@pytest.mark.parametrize(
    ("key", "value"), [("stochastic_depth_drop_prob", 0.5), ("att_context_size", [[20, 0], [8, 3]])]
)
def test_chance_that_the_host_draws_is_refused_with_its_key(part, key, value):
    parts = make.section(adapter=conformer(32, 1) | {"n_layers": 2})
    parts[part] |= {key: value}
    with pytest.raises(ValueError, match=rf"parallel\.cuda_graphs: model\.perception\.{part}\.{key} .*=false"):
        make.build(parts).check_repeatable()


def test_other_encoders_and_moved_ends_are_refused(config):
    model = DuplexS2SModel(config)
    model.cfg.delay_text_eos_by = 1
    with pytest.raises(ValueError, match=r"model\.delay_text_eos_by .*parallel\.cuda_graphs=false"):
        model.graph()
    model.perception = make.build({"encoder": {"model_type": "whisper"} | make.whisper_keys()})
    with pytest.raises(ValueError, match=r"parallel\.cuda_graphs: .*Perception .*parallel\.cuda_graphs=false"):
        model.graph()


def test_weights_that_are_gathered_in_each_step_are_refused():
    config = ParallelConfig(cuda_graphs=True)
    for tensor_parallel in (False, True):
        with pytest.raises(ValueError, match=r"parallel\.cuda_graphs .*parallel\.cuda_graphs=false"):
            check_layout(config, sharded=True, tensor_parallel=tensor_parallel)
    check_layout(config, sharded=False, tensor_parallel=False)
