import pytest
import torch
import torch.nn.functional as F

from s2s_model.config import ModelConfig, TokenWeights
from s2s_model.losses import LossSums, code_loss_sum, codebook_weights, text_loss_sum, token_weights

PAD, BOS, EOS = 0, 1, 2


def logits(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_token_weights_scale_each_frames_loss_by_its_label():
    labels = torch.tensor([PAD, BOS, 7, 5, EOS])
    weights = token_weights(labels, TokenWeights(pad=0.1, bos=2, eos=3, text=0.5), PAD, BOS, EOS)
    assert weights.tolist() == pytest.approx([0.1, 2, 0.5, 0.5, 3])
    each = F.cross_entropy(logits(5, 9), labels, reduction="none")
    expected = 0.1 * each[0] + 2 * each[1] + 0.5 * (each[2] + each[3]) + 3 * each[4]
    assert text_loss_sum(logits(5, 9), labels, weights).item() == pytest.approx(expected.item())


def test_weights_of_one_are_no_weights():
    labels = torch.tensor([PAD, BOS, 7])
    assert token_weights(labels, TokenWeights(), PAD, BOS, EOS) is None
    ones = torch.ones(3)
    assert text_loss_sum(logits(3, 9), labels).item() == pytest.approx(text_loss_sum(logits(3, 9), labels, ones).item())
    assert torch.equal(codebook_weights([], 2), codebook_weights([5, 5], 2))


def test_codebook_weights_favour_a_codebook_and_keep_the_scale():
    codes = torch.randint(4, (6, 3))
    each = F.cross_entropy(logits(6, 12).view(18, 4), codes.flatten(), reduction="none").view(6, 3).sum(dim=0)
    weighted = code_loss_sum(logits(6, 12), codes, codebook_weights([2, 1, 1], 3))
    assert weighted.item() == pytest.approx((each[0] * 2 + each[1] + each[2]).item() / 4)


def test_codebook_weights_that_dont_fit_are_refused():
    with pytest.raises(ValueError, match=r"codebook_loss_weight has 2 numbers, the codec 3 codebooks"):
        codebook_weights([1, 2], 3)
    with pytest.raises(ValueError, match=r"from 0 up"):
        codebook_weights([1, -1], 2)


def test_the_objective_weighs_text_audio_and_the_users_text():
    config = ModelConfig("llm", "codec", text_loss_weight=3, audio_loss_weight=4, asr_loss_weight=0.5)
    one, two, four = (torch.tensor(float(x)) for x in (1, 2, 4))
    assert LossSums(one, two, torch.tensor(1)).objective(config) == 11
    assert LossSums(one, two, torch.tensor(1), user_text=four).objective(config) == 13
