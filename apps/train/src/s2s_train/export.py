"""`export`: a run's checkpoint becomes a folder that `DuplexS2SModel.from_pretrained` loads."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2s_train.config import AppConfig, load_config
from s2s_train.find_checkpoint import LAST, checkpoint_names, existing, find_checkpoint
from s2s_train.run_folder import DEFAULT_RUNS_DIR, RunFolder

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel


@dataclass(frozen=True)
class ExportArgs:
    """What the command line asks for."""

    run: Path  # a run's folder, or a checkpoint in it
    out: Path  # the folder to write
    checkpoint: str = LAST  # last, best, or a file
    merge_lora: bool = False  # fold the adapters into the LLM's weights
    dtype: str | None = None  # of all weights; None: as they are in the checkpoint
    with_codec: bool = True  # write the codec too


def prepare(args: ExportArgs) -> tuple[AppConfig, Path]:
    """Check all that can be checked without the slow imports; return the run's config and the checkpoint's path.

    Raises:
        FileNotFoundError: no such run or checkpoint.
        FileExistsError: `out` holds something that isn't an export.
        ValueError: the checkpoint is damaged, or the run doesn't know its best one.
    """
    from s2s_model.pretrained import check_target
    from s2s_model.weights import check_dtype

    check_target(args.out)
    if args.dtype is not None:
        check_dtype(args.dtype)
    cfg, checkpoint = find_trained(args.run, args.checkpoint)
    if args.merge_lora and cfg.model.lora is None:
        config = _find_run(args.run).config
        raise ValueError(f"--merge-lora: {config} sets no model.lora, so there is nothing to merge")
    return cfg, checkpoint


def export(args: ExportArgs, cfg: AppConfig, checkpoint: Path) -> None:
    """Build the run's model, put the checkpoint's weights into it and write it to `args.out`.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    from s2s_model.lora import merge_lora
    from s2s_model.weights import cast_weights

    model, step = load_trained(cfg, checkpoint)
    if args.merge_lora:
        merge_lora(model.llm)
    if args.dtype is not None:
        cast_weights(model, args.dtype)
    model.save_pretrained(args.out, with_codec=args.with_codec)
    print(_written(args, checkpoint, step, model))


def load_trained(cfg: AppConfig, checkpoint: Path) -> tuple[DuplexS2SModel, int | None]:
    """Build the run's model with the checkpoint's weights; return it with the checkpoint's step.

    Raises:
        ValueError, OSError: as `export`.
    """
    from s2s_model.duplex import DuplexS2SModel
    from s2s_model.model_section import without_weights
    from s2s_model.weights import put_weights, read_checkpoint

    saved = read_checkpoint(checkpoint)
    model = DuplexS2SModel(without_weights(asdict(cfg.model)), frame_length_s=cfg.data.frame_length)
    put_weights(model, saved["state_dict"], str(checkpoint))
    return model, saved.get("global_step")


def find_trained(path: Path, checkpoint: str) -> tuple[AppConfig, Path]:
    """Return the config and the checkpoint of the run at `path`, a run's folder or a checkpoint in it.

    Raises:
        FileNotFoundError, ValueError: as `prepare`.
    """
    run = _find_run(path)
    return load_config(run.config), _find_checkpoint(path, checkpoint, run)


def _find_run(path: Path) -> RunFolder:
    folder = path.absolute().parent.parent if path.suffix == ".ckpt" else path
    if not folder.is_dir():
        raise FileNotFoundError(f"no run {folder}{_near(folder)}")
    run = RunFolder(folder)
    if not run.config.is_file():
        raise FileNotFoundError(
            f"{folder} is no run, it has no {run.config.name}, which every run writes first{_in_runs(folder)}"
        )
    return run


def _find_checkpoint(path: Path, asked: str, run: RunFolder) -> Path:
    if path.suffix != ".ckpt":
        return find_checkpoint(run, asked, "--checkpoint")
    if asked != LAST:
        raise ValueError(f"--checkpoint {asked}: {path} is a checkpoint itself, give one of them")
    return find_checkpoint(run, str(existing(run, path)), "--checkpoint")


def _near(run: Path) -> str:
    """A hint at the run that may be meant, of those that have a checkpoint."""
    if in_runs := _in_runs(run):
        return in_runs
    parent = run.parent if run.parent.is_dir() and run.parent != Path() else Path(DEFAULT_RUNS_DIR)
    names = [path.name for path in parent.glob("*") if checkpoint_names(RunFolder(path))]
    near = difflib.get_close_matches(run.name, names, n=1, cutoff=0.4)
    if near:
        return f": did you mean {parent / near[0]}?"
    return (
        f" (runs in {parent}: {', '.join(sorted(names))})" if names else f" (and no run in {parent} has a checkpoint)"
    )


def _in_runs(run: Path) -> str:
    """A hint at the run of this name, where the name was given without its folder."""
    in_runs = Path(DEFAULT_RUNS_DIR) / run
    return f": did you mean {in_runs}?" if not run.is_absolute() and in_runs.is_dir() else ""


def _written(args: ExportArgs, checkpoint: Path, step: Any, model: DuplexS2SModel) -> str:
    size_mb = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file()) / 1e6
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    codec = "with its codec" if args.with_codec else f"without its codec, {model.cfg.pretrained_audio_codec}"
    return (
        f"{args.out}: step {step} of {checkpoint}\n"
        f"{num_parameters / 1e6:,.1f} M parameters, {size_mb:,.1f} MB, {codec}\n"
        "load it with\n"
        "  from s2s_model import DuplexS2SModel\n"
        f"  model = DuplexS2SModel.from_pretrained({str(args.out)!r})\n"
        "  answer = model.offline_inference(audio_BS, lens_B)"
    )
