import torch

from s2s_parallel.mismatch import explain_mismatch


def state(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def test_equal_states_need_no_explanation():
    assert explain_mismatch(state(a=(2, 3)), state(a=(2, 3))) is None


def test_names_and_both_shapes_are_quoted():
    text = explain_mismatch(state(head=(8, 4), old=(1,)), state(head=(9, 4), new=(1,)))
    assert text is not None
    assert "head is [8, 4] in the checkpoint, [9, 4] in the model" in text
    assert "missing in the checkpoint (1): new" in text
    assert "unknown to the model (1): old" in text
    assert "\n" not in text


def test_a_long_list_is_counted_not_printed():
    text = explain_mismatch({}, state(**{f"layer{i}": (1,) for i in range(100)}))
    assert text == "missing in the checkpoint (100): layer0, layer1, layer2, layer3 and 96 more"
