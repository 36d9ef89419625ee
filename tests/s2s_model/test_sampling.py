import pytest
import torch

from s2s_model.sampling import GenerationConfig, Sampling, check_sampling, choose

LOGITS = torch.tensor([0.0, 1.0, 2.0, 3.0, -5.0])


def drawn(sampling, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return choose(LOGITS.expand(500, 2, 5), sampling, generator)


def test_temperature_0_takes_the_best():
    assert drawn(Sampling()).unique().tolist() == [3]


def test_draws_follow_the_distribution_and_the_seed():
    tokens = drawn(Sampling(temperature=1.0))
    assert tokens.shape == (500, 2)
    shares = torch.bincount(tokens.flatten(), minlength=5) / 1000
    assert (shares - LOGITS.softmax(0)).abs().max() < 0.05
    assert torch.equal(tokens, drawn(Sampling(temperature=1.0)))
    assert not torch.equal(tokens, drawn(Sampling(temperature=1.0), seed=1))


def test_top_k_and_top_p_narrow_the_draw():
    assert drawn(Sampling(temperature=5.0, top_k=2)).unique().tolist() == [2, 3]
    assert drawn(Sampling(temperature=1.0, top_p=0.7)).unique().tolist() == [2, 3]
    assert drawn(Sampling(temperature=1e-4)).unique().tolist() == [3]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1), r"gen\.audio\.temperature is -1"),
        (Sampling(temperature=1, top_k=-2), r"gen\.audio\.top_k is -2"),
        (Sampling(temperature=1, top_p=0), r"gen\.audio\.top_p is 0"),
        (Sampling(top_p=0.9), r"no effect at temperature 0"),
    ],
)
def test_figures_out_of_range_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        check_sampling(GenerationConfig(audio=sampling), "gen")
