import pytest
import torch

from s2s_model.optim import build_optimizers, freeze
from s2s_model.targets import check_targets, instantiate


def module():
    return torch.nn.ModuleDict({"llm": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})


def test_a_regex_freezes_what_it_matches_and_prevent_wins():
    net = module()
    freeze(net, [r"^llm\..+$"], [r"^llm\.bias$"], [])
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["llm.bias", "head.weight", "head.bias"]


def test_a_regex_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match=r"model\.freeze_params\[0\]: '\^lm\\\\\.' matches no parameter"):
        freeze(module(), [r"^lm\."], [], [])


def test_the_codecs_names_count_as_matched():
    freeze(module(), [r"^audio_codec\..+$"], [], ["audio_codec.encoder.weight"])


def test_only_known_packages_are_instantiated():
    with pytest.raises(ValueError, match=r"model\.optimizer\._target_: 'os\.system' isn't in a package"):
        instantiate({"_target_": "os.system", "command": "true"}, "model.optimizer")
    with pytest.raises(ValueError, match=r"'torch\.os\.system' isn't a class"):
        instantiate({"_target_": "torch.os.system", "command": "true"}, "model.optimizer")
    with pytest.raises(ValueError, match=r"'subprocess\.Popen' isn't in a package"):
        instantiate({"_target_": "torch.utils.collect_env.subprocess.Popen", "args": ["true"]}, "model.optimizer")
    with pytest.raises(ValueError, match=r"there is no 'torch\.optim\.AdamX'"):
        instantiate({"_target_": "torch.optim.AdamX"}, "model.optimizer")
    with pytest.raises(ValueError, match=r"a\.b\[0\]\._target_"):
        check_targets({"b": [{"_target_": "subprocess.run"}]}, "a")


def test_a_wrong_argument_is_reported_with_its_key():
    with pytest.raises(ValueError, match=r"model\.optimizer: torch\.optim\.AdamW can't be built.*learning_rate"):
        build_optimizers(module(), {"_target_": "torch.optim.AdamW", "learning_rate": 1}, None)


def test_the_scheduler_steps_with_the_optimizer():
    built = build_optimizers(
        module(),
        {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing", "warmup_steps": 2, "max_steps": 10},
    )
    assert built["lr_scheduler"]["interval"] == "step"
    assert built["optimizer"].param_groups[0]["lr"] < 1e-3  # warming up
