"""A run carried to another machine: small files, frozen weights made anew, and training that goes on."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from recipes.talk import carry
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.config import load_config
from s2s_train.run_folder import RunFolder
from tests.recipes.builders import fit, logged
from tests.s2s_model.builders import make_codec

PART_MIB = 4
ALL_BUT_THE_LLM = r'model.freeze_params=["^embed_asr_tokens\\."]'


@pytest.fixture(scope="module")
def stage(talk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step; its LLM is frozen but for adapters, and so is its encoder."""
    return one_step(talk, tmp_path_factory.mktemp("stage"))


def one_step(talk: Path, folder: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALK", str(talk))
        patch.chdir(folder)
        fit("talk_carried", talk / "llm", "carried", "trainer.max_steps=1", *overrides)
    return folder / "runs/carried"


@pytest.fixture
def run(stage: Path, in_talk: Path) -> Path:
    """A copy of that run in the working folder."""
    return shutil.copytree(stage, Path("runs/carried"))


def last(run: Path) -> dict[str, Any]:
    return AtomicCheckpointIO().load_checkpoint(run / "checkpoints/last.ckpt")


def test_a_run_goes_on_from_its_parts(run, stage, in_talk):
    assert carry.main(["pack", str(run), "parts", "--part-mib", str(PART_MIB)]) == 0
    sizes = [path.stat().st_size for path in Path("parts").iterdir()]
    assert max(sizes) <= PART_MIB * carry.MIB
    assert len(sizes) > 3
    shutil.rmtree(run)
    assert carry.main(["unpack", "parts", str(run), "model.pretrained_lora=/no/where"]) == 0  # it was trained on
    unpacked = load_config(run / "config.yaml")  # as validate and export read it
    assert (unpacked.model.pretrained_lora, RunFolder.of(unpacked).path) == (None, run)
    assert unpacked.model.pretrained_asr == str(in_talk / "encoder.nemo"), "its encoder is frozen, so it stays there"
    before, after = last(stage), last(run)
    assert after["state_dict"].keys() == before["state_dict"].keys()
    for name, value in before["state_dict"].items():
        assert torch.equal(after["state_dict"][name], value), name
    assert (after["global_step"], after["lr_schedulers"]) == (1, before["lr_schedulers"])
    assert after["optimizer_states"][0]["state"] == {}
    carried = logged(fit("talk_carried", in_talk / "llm", "carried", "model.pretrained_lora=null"), "train_loss")
    shutil.copytree(stage, Path("runs/stayed"))
    stayed = logged(fit("talk_carried", in_talk / "llm", "stayed"), "train_loss")
    assert [*carried] == [2]
    assert carried[2] == stayed[2], "the same weights and data: moments show from the next step on"


def test_float32_weights_can_be_rounded_to_half_the_space(run, in_talk, capsys):
    assert carry.main(["pack", str(run), "exact"]) == 0
    assert carry.main(["pack", str(run), "rounded", "--dtype", "bfloat16"]) == 0
    assert "weights rounded to bfloat16" in capsys.readouterr().out
    exact, rounded = (sum(p.stat().st_size for p in Path(name).glob("*.safetensors")) for name in ("exact", "rounded"))
    assert rounded < 0.51 * exact
    assert carry.main(["unpack", "rounded", "new"]) == 0
    before, after = last(run)["state_dict"], last(Path("new"))["state_dict"]
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        if not torch.equal(after[name], value):
            assert torch.equal(after[name], value.bfloat16().float()), name
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert "audio_head.weight" in changed
    assert any("preprocessor" in name for name in before)
    assert not any("preprocessor" in name for name in changed), "windows and filters stay as they are"


def test_an_encoder_that_is_trained_is_carried(talk, in_talk):
    run = one_step(talk, Path.cwd(), ALL_BUT_THE_LLM)
    assert carry.main(["pack", str(run), "parts"]) == 0
    assert carry.main(["unpack", "parts", "new", "model.pretrained_asr=/no/where.nemo"]) == 0
    assert load_config(Path("new/config.yaml")).model.pretrained_asr is None
    before, after = last(run)["state_dict"], last(Path("new"))["state_dict"]
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("perception.encoder."))


def test_another_checkpoint_than_the_last_is_packed(run, capsys):
    earlier = last(run)
    earlier["global_step"] = 0
    AtomicCheckpointIO().save_checkpoint(earlier, run / "checkpoints/earlier.ckpt")
    assert carry.main(["pack", str(run), "parts", "--checkpoint", "earlier.ckpt"]) == 0
    assert "parts: step 0 of runs/carried/checkpoints/earlier.ckpt" in capsys.readouterr().out
    assert carry.main(["pack", str(run), "others", "--checkpoint", "none.ckpt"]) == 2
    assert "none.ckpt" in capsys.readouterr().err


def test_tied_weights_are_carried_once(run, capsys):
    path = run / "checkpoints/last.ckpt"
    checkpoint = last(run)
    state = checkpoint["state_dict"]
    state["again"] = state["audio_head.weight"]
    AtomicCheckpointIO().save_checkpoint(checkpoint, path)
    assert carry.main(["pack", str(run), "parts"]) == 0
    assert carry.main(["unpack", "parts", "new"]) == 0
    carried = last(Path("new"))["state_dict"]
    assert torch.equal(carried["again"], state["audio_head.weight"])
    assert carried["again"].data_ptr() == carried["audio_head.weight"].data_ptr()
    stored = [name for part in Path("parts").glob("*.safetensors") for name in safe_open(part, "pt").keys()]  # noqa: SIM118
    assert len({"again", "audio_head.weight"} & set(stored)) == 1


def test_other_frozen_weights_are_refused(run, capsys):
    assert carry.main(["pack", str(run), "parts"]) == 0
    assert carry.main(["unpack", "parts", "new", "model.pretrained_weights=false"]) == 2
    assert "isn't what the run was trained with" in capsys.readouterr().err
    assert not Path("new/checkpoints/last.ckpt").exists()
    assert carry.main(["unpack", "parts", str(run)]) == 2
    assert "has a checkpoint already" in capsys.readouterr().err
    assert carry.main(["pack", str(run), "parts"]) == 2
    assert "parts isn't empty" in capsys.readouterr().err


def test_a_run_that_speaks_by_another_codec_is_refused(run, capsys):
    assert carry.main(["pack", str(run), "parts"]) == 0
    other = make_codec(Path("other.nemo"), num_codebooks=3)
    assert carry.main(["unpack", "parts", "new", f"model.pretrained_audio_codec={other}"]) == 2
    assert "take the one that it was trained with" in capsys.readouterr().err
    assert not Path("new/checkpoints/last.ckpt").exists()


def test_limits_are_kept(run, capsys):
    assert carry.main(["pack", str(run), "parts", "--total-mib", "5"]) == 2
    assert "may take 5" in capsys.readouterr().err
    assert not Path("parts").exists()
    assert carry.main(["pack", str(run), "parts", "--part-mib", "0.5"]) == 2
    assert "a file 0.5: freeze it" in capsys.readouterr().err
