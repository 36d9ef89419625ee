import pytest

from s2s_data.config import DataConfig
from s2s_model.config import ModelConfig
from s2s_parallel.checkpoint import AtomicCheckpointIO
from s2s_train.config import AppConfig
from s2s_train.exp_config import ExpConfig
from s2s_train.run_folder import RunFolder


def config(top_level: str | None = None, **exp: object) -> AppConfig:
    model = ModelConfig(pretrained_llm="a", pretrained_audio_codec="b")
    return AppConfig(name=top_level, model=model, data=DataConfig(), exp_manager=ExpConfig(**exp))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cfg", "path"),
    [
        (config("a"), "runs/a"),
        (config("a", name="b"), "runs/a"),
        (config(name="b"), "runs/b"),
        (config("a", exp_dir="elsewhere"), "elsewhere/a"),
        (config("a", exp_dir="elsewhere", explicit_log_dir="s2s_results/"), "s2s_results"),
    ],
)
def test_where_a_run_lies(cfg, path):
    assert str(RunFolder.of(cfg).path) == path


def save(folder: RunFolder, name: str) -> None:
    AtomicCheckpointIO().save_checkpoint({"name": name}, folder.checkpoints / name)


def test_which_checkpoint_a_run_goes_on_from(tmp_path):
    run = RunFolder(tmp_path / "run")
    given = RunFolder(tmp_path / "given")
    save(given, "best.ckpt")
    start = str(given.checkpoints / "best.ckpt")
    assert run.checkpoint_to_resume(ExpConfig()) is None
    assert run.checkpoint_to_resume(ExpConfig(resume_from_checkpoint=start)) == given.checkpoints / "best.ckpt"
    save(run, "step=5.ckpt")
    assert run.checkpoint_to_resume(ExpConfig()) == run.checkpoints / "step=5.ckpt"
    save(run, "last.ckpt")
    save(run, "step=9.ckpt")
    assert run.checkpoint_to_resume(ExpConfig(resume_from_checkpoint=start)) == run.last_checkpoint


def test_refusals_say_what_to_do(tmp_path):
    run = RunFolder(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="resume_ignore_no_checkpoint=true"):
        run.checkpoint_to_resume(ExpConfig(resume_ignore_no_checkpoint=False))
    with pytest.raises(FileNotFoundError, match=r"resume_from_checkpoint: no checkpoint at gone\.ckpt"):
        run.checkpoint_to_resume(ExpConfig(resume_from_checkpoint="gone.ckpt"))
    save(run, "last.ckpt")
    with pytest.raises(ValueError, match=r"already holds a run, and exp_manager\.resume_if_exists is false"):
        run.checkpoint_to_resume(ExpConfig(resume_if_exists=False))
