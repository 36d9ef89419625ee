"""`export` on real runs of tiny models: what is loaded again is what was trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from s2s_model import DuplexS2SModel
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.cli import main
from tests.s2s_data.builders import dialogues, write_shar
from tests.s2s_model.builders import make_codec, make_llm, model_config


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run runs/tiny: LoRA, two steps, a validation after each."""
    folder = tmp_path_factory.mktemp("export")
    corpus = write_shar(folder / "corpus", dialogues("cut", 4))
    sections: dict[str, Any] = {
        "model": model_config(make_llm(folder / "llm"), make_codec(folder / "codec.nemo"), lora={"r": 2}),
        "data": {
            "train_ds": {"shar_path": corpus, "batch_size": 2, "shuffle_buffer_size": 2},
            "validation_ds": {"batch_size": 2, "datasets": {"seen": {"shar_path": corpus, "max_duration": 2.0}}},
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "limit_train_batches": 2,
            "limit_val_batches": 1,
            "val_check_interval": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
        },
        "exp_manager": {"checkpoint_callback_params": {"save_top_k": -1}},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(sections))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "tiny.yaml"]) == 0
    return folder


@pytest.fixture
def run(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    return Path("runs/tiny")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AtomicCheckpointIO().load_checkpoint(checkpoint)["state_dict"]
    return state


def assert_weights(out: Path, checkpoint: Path) -> None:
    state = DuplexS2SModel.from_pretrained(out).state_dict()
    assert state.keys() == weights(checkpoint).keys()
    for name, value in weights(checkpoint).items():
        assert torch.equal(state[name], value), name


def told(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line on stderr of a command that ends in exit code 2."""
    assert main(["export", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_the_last_checkpoint_and_how_to_load_it(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: step 2 of runs/tiny/checkpoints/last.ckpt" in printed
    assert_weights(tmp_path / "out", run / "checkpoints" / "last.ckpt")
    told_lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    assert len(told_lines) == 3
    names = {"audio_BS": torch.randn(1, 16000), "lens_B": torch.tensor([16000])}
    exec("\n".join(told_lines), names)
    assert names["answer"]["audio"].shape[1] == names["answer"]["tokens_text"].shape[1] * 1764


def test_a_checkpoint_by_name_by_path_and_the_best(run, tmp_path, capsys):
    first = run / "checkpoints" / "step=1.ckpt"
    assert main(["export", str(run), str(tmp_path / "name"), "--checkpoint", first.name]) == 0
    assert main(["export", str(first), str(tmp_path / "path")]) == 0
    for name in ("name", "path"):
        assert_weights(tmp_path / name, first)
    callbacks = AtomicCheckpointIO().load_checkpoint(run / "checkpoints" / "last.ckpt")["callbacks"]
    scores = next(state for state in callbacks.values() if "best_k_models" in state)["best_k_models"]
    best = Path(min(scores, key=scores.get)).name  # of val_loss, the monitor without a scoring ASR
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "best"), "--checkpoint", "best"]) == 0
    assert f"of runs/tiny/checkpoints/{best}" in capsys.readouterr().out
    assert_weights(tmp_path / "best", run / "checkpoints" / best)


def test_merged_half_the_size_and_without_the_codec(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "whole")]) == 0
    options = ["--merge-lora", "--dtype", "bfloat16", "--without-codec"]
    assert main(["export", str(run), str(tmp_path / "half"), *options]) == 0
    assert not (tmp_path / "half" / "codec").exists()
    whole, half = (DuplexS2SModel.from_pretrained(tmp_path / name) for name in ("whole", "half"))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not any("lora" in name for name in half.state_dict())
    layer = whole.llm.model.layers[0].self_attn.q_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.equal(half.llm.model.layers[0].self_attn.q_proj.weight, merged.bfloat16())


def test_a_checkpoint_in_parts(run, tmp_path):
    """The layout of Lightning's ModelParallelStrategy."""
    import torch.distributed.checkpoint as dcp

    copy = shutil.copytree(run, tmp_path / "copy")
    last = copy / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    last.unlink()
    dcp.save({"state_dict": whole.pop("state_dict")}, checkpoint_id=last, no_dist=True)
    torch.save(whole, last / "meta.pt")
    assert main(["export", str(copy), str(tmp_path / "out")]) == 0
    assert_weights(tmp_path / "out", run / "checkpoints" / "last.ckpt")


def test_what_can_be_mended_is_one_line(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no run tiny: did you mean runs/tiny?" in told(capsys, "tiny", out)
    assert "no run runs/tinny: did you mean runs/tiny?" in told(capsys, "runs/tinny", out)
    Path("runs/tinny_refused/checkpoints").mkdir(parents=True)
    assert "no run runs/tinny: did you mean runs/tiny?" in told(capsys, "runs/tinny", out)
    assert "no run runs/other (runs in runs: tiny)" in told(capsys, "runs/other", out)
    assert "no run llm/other (and no run in llm has a checkpoint)" in told(capsys, "llm/other", out)
    assert "no checkpoint at runs/tiny/checkpoints/step=7.ckpt: give one of last.ckpt, step=1.ckpt" in told(
        capsys, run, out, "--checkpoint", "step=7.ckpt"
    )
    assert "corpus is no run, it has no config.yaml" in told(capsys, "corpus", out)
    assert "step=1.ckpt is a checkpoint itself" in told(
        capsys, run / "checkpoints" / "step=1.ckpt", out, "--checkpoint", "best"
    )
    assert "dtype is 'int4': use one of float32, bfloat16, float16" in told(capsys, run, out, "--dtype", "int4")
    assert "llm exists and is no export of a model" in told(capsys, run, "llm")
    assert not out.exists()


def test_runs_without_a_whole_checkpoint(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    for path in (copy / "checkpoints").iterdir():
        path.unlink()
    assert "copy/checkpoints/last.ckpt: the run has saved none yet" in told(capsys, copy, tmp_path / "out")
    (copy / "checkpoints" / "last.ckpt").write_bytes(b"cut off")
    assert "checkpoints/last.ckpt is damaged" in told(capsys, copy, tmp_path / "out")


def test_a_checkpoint_that_does_not_fit_its_config_names_the_tensors(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["lora"] = {"r": 3}
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    line = told(capsys, copy, tmp_path / "out")
    assert "lora_A.default.weight is [2, 32] in the checkpoint, [3, 32] in the model" in line
    config["model"]["lora"] = None
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    assert "sets no model.lora, so there is nothing to merge" in told(capsys, copy, tmp_path / "out", "--merge-lora")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for part in ("export runs/demo exported/demo --checkpoint best", "--merge-lora", "from_pretrained"):
        assert part in text


def test_mistakes_are_told_before_the_slow_imports(run, tmp_path):
    code = """
import json, sys
from s2s_train.cli import main
assert main(["export", *sys.argv[1:]]) == 2
print(json.dumps([name for name in ("nemo", "transformers", "lightning") if name in sys.modules]))
"""
    argv = [str(run), str(tmp_path / "out"), "--checkpoint", "gone.ckpt"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False, timeout=120)
    assert json.loads(done.stdout) == [], done.stderr
