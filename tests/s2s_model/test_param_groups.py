import pytest
import torch

from s2s_model.freezing import freeze
from s2s_model.param_groups import build_optimizers, parameter_groups
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


def test_what_is_no_regex_is_refused():
    with pytest.raises(ValueError, match=r"model\.freeze_params\[0\]: '\(llm' is no regular expression"):
        freeze(module(), ["(llm"], [], [])


def test_preventing_reopens_only_what_lora_froze():
    net = module().requires_grad_(False)
    freeze(net, [], [r"^(llm|head)\.weight$"], [], reopen="llm.")
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["llm.weight"]


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


def test_a_class_that_starts_a_process_is_refused_wherever_it_stands(tmp_path):
    """torch has such classes, and a shared model's config names classes."""
    handler = "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler"
    touched = tmp_path / "touched"
    evil = {
        "_target_": handler, "entrypoint": "/usr/bin/touch", "args": [str(touched)], "env": {},
        "stdout": None, "stderr": None, "local_rank_id": 0, "numa_options": None,
    }  # fmt: skip
    for config in (evil, {"_target_": "torch.nn.Identity", "x": evil}):
        with pytest.raises(ValueError, match=r"SubprocessHandler' is no torch\.nn\.modules\.module\.Module"):
            instantiate(config, "model.perception.preprocessor")
    assert not touched.exists()
    with pytest.raises(ValueError, match=r"is no torch\.optim\.optimizer\.Optimizer"):
        build_optimizers(module(), evil, None)


def test_a_wrong_argument_is_reported_with_its_key():
    with pytest.raises(
        ValueError, match=r"model\.optimizer\.learning_rate is no argument of torch\.optim\.AdamW: it takes.* lr,"
    ):
        build_optimizers(module(), {"_target_": "torch.optim.AdamW", "learning_rate": 1}, None)


def test_the_scheduler_steps_with_the_optimizer():
    built = build_optimizers(
        module(),
        {"_target_": "torch.optim.AdamW", "lr": 1e-3},
        {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing", "warmup_steps": 2, "max_steps": 10},
    )
    assert built["lr_scheduler"]["interval"] == "step"
    assert built["optimizer"].param_groups[0]["lr"] < 1e-3  # warming up


def mixed():
    return torch.nn.ModuleDict(
        {"llm": torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)), "perception": torch.nn.Linear(3, 3)}
    )


def names_of(net, group):
    ids = {id(p) for p in group["params"]}
    return [n for n, p in net.named_parameters() if id(p) in ids]


def test_norms_and_biases_arent_decayed():
    net = mixed()
    optimizer = build_optimizers(net, {"_target_": "torch.optim.AdamW", "lr": 1.0, "weight_decay": 0.1}, None)[
        "optimizer"
    ]
    decay = {n: g["weight_decay"] for g in optimizer.param_groups for n in names_of(net, g)}
    assert decay == {
        "llm.0.weight": 0.1, "llm.0.bias": 0.0, "llm.1.weight": 0.0, "llm.1.bias": 0.0,
        "perception.weight": 0.1, "perception.bias": 0.0,
    }  # fmt: skip
    everything = parameter_groups(net, [], decay_norms_and_biases=True)
    assert len(everything) == 1
    assert len(everything[0]["params"]) == 6


def test_a_module_gets_its_own_learning_rate_and_the_first_match_counts():
    net = mixed()
    groups = [{"match": r"^perception\.", "lr": 0.5, "weight_decay": 0.3}, {"match": r".*weight", "lr": 0.25}]
    config = {"_target_": "torch.optim.AdamW", "lr": 1.0, "weight_decay": 0.1}
    optimizer = build_optimizers(net, config, None, groups)["optimizer"]
    rates = {n: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for n in names_of(net, g)}
    assert rates == {
        "llm.0.weight": (0.25, 0.1), "llm.0.bias": (1.0, 0.0), "llm.1.weight": (0.25, 0.0), "llm.1.bias": (1.0, 0.0),
        "perception.weight": (0.5, 0.3), "perception.bias": (0.5, 0.0),
    }  # fmt: skip


def test_a_misspelt_argument_of_a_group_is_refused():
    """torch keeps it and ignores it."""
    groups = [{"match": "^llm", "lrr": 0.5}]
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.lrr is no argument of torch\.optim\.AdamW.*mean lr"):
        build_optimizers(mixed(), {"_target_": "torch.optim.AdamW"}, None, groups)


def test_a_group_that_matches_nothing_trained_is_refused():
    net = mixed()
    net["perception"].requires_grad_(False)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.match: '\^perception' matches no parameter"):
        parameter_groups(net, [{"match": "^perception", "lr": 1.0}], False)
    with pytest.raises(ValueError, match=r"param_groups\[0\]\.match is missing"):
        parameter_groups(net, [{"lr": 1.0}], False)
    with pytest.raises(ValueError, match=r"param_groups\[0\] sets nothing"):
        parameter_groups(net, [{"match": "^llm"}], False)
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing is left to train"):
        parameter_groups(net, [], False)
