"""A typo in any key of the published config is refused, with the key that was meant."""

import re
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2s_data.blend import parse_blend
from s2s_train.cli import main
from s2s_train.config import load_config
from s2s_train.free_sections import check_free_sections

CONFIG = Path(__file__).parents[2] / "apps/train/conf/s2s_duplex.yaml"
NAMES_OF_THE_USERS = {"data.validation_ds.datasets.val_set_0"}


@cache
def published() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(CONFIG.read_text().replace("???", "somewhere"))
    return config


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every key."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if isinstance(node, dict):
            yield (*path, key)
        yield from places(value, (*path, key))


def typos(name: str) -> Iterator[str]:
    """The name without a letter, and with two changed over."""
    middle = len(name) // 2
    yield name[:middle] + name[middle + 1 :]
    a, b = middle - 1, middle
    if name[a] != name[b]:
        yield name[:a] + name[b] + name[a] + name[b + 1 :]


def renamed(place: tuple[Any, ...], name: str) -> dict[str, Any]:
    config = deepcopy(published())
    parent: Any = config
    for step in place[:-1]:
        parent = parent[step]
    parent[name] = parent.pop(place[-1])
    return config


def refusal(path: Path) -> str:
    """What is said of the config before anything is built, or of the data before any is read."""
    with pytest.raises((ValueError, OSError)) as caught:
        check(path)
    return str(caught.value)


def check(path: Path) -> None:
    cfg = load_config(path)
    check_free_sections(cfg)
    parse_blend("data.train_ds", input_cfg=cfg.data.train_ds.input_cfg)


def test_each_key_of_the_published_file_is_refused_when_it_is_misspelt(tmp_path):
    check_free_sections(load_config(write(tmp_path, published())))
    all_places = [place for place in places(published()) if ".".join(map(str, place)) not in NAMES_OF_THE_USERS]
    assert len(all_places) > 110
    for i, place in enumerate(all_places):
        possible = list(typos(place[-1]))
        typo = possible[i % len(possible)]
        told = refusal(write(tmp_path, renamed(place, typo)))
        assert re.search(rf"\b{place[-1]}\b", told), (place, typo, told)
        assert "\n" not in told


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "typo.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("model.perception.modality_adapter.n_layrs=2", "n_layers"),
        ("model.optimizer.weight_deacy=0.1", "weight_decay"),
        ("model.lr_scheduler.warmup_step=3", "warmup_steps"),
        ("trainer.strategy.find_unused_parameter=true", "find_unused_parameters"),
    ],
)
def test_a_misspelt_argument_ends_the_command_in_one_line(tmp_path, capsys, monkeypatch, override, meant):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, published())
    cpu = [
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "model.scoring_asr=none",
        "exp_manager.checkpoint_callback_params.monitor=val_loss",
    ]
    assert main(["fit", str(path), *cpu, override]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    key = override.partition("=")[0]
    assert line.startswith(f"error: {key} is no argument of")
    assert f"did you mean {key.rpartition('.')[0]}.{meant}?" in line


def test_a_secret_is_refused_where_config_yaml_would_hold_it(tmp_path):
    key = "exp_manager.wandb_logger_kwargs.settings={api_key: 1234}"
    cfg = load_config(write(tmp_path, published()), [key])
    with pytest.raises(ValueError, match=r"wandb_logger_kwargs\.settings\.api_key: .* set WANDB_API_KEY"):
        check_free_sections(cfg)
