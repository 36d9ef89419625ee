"""`export`: a run's checkpoint becomes a folder that `DuplexS2SModel.from_pretrained` loads."""

from __future__ import annotations

import difflib
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2s_parallel.checkpoint_folder import whole_path
from s2s_train.config import AppConfig, load_config
from s2s_train.run_folder import DEFAULT_RUNS_DIR, RunFolder

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel

LAST, BEST = "last", "best"


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
    run = _find_run(args.run)
    cfg = load_config(run.config)
    if args.merge_lora and cfg.model.lora is None:
        raise ValueError(f"--merge-lora: {run.config} sets no model.lora, so there is nothing to merge")
    checkpoint = _find_checkpoint(args, run)
    if checkpoint.is_file() and not zipfile.is_zipfile(checkpoint):
        raise ValueError(f"checkpoint {checkpoint} is damaged: give another with --checkpoint FILE{_others(run)}")
    return cfg, checkpoint


def export(args: ExportArgs, cfg: AppConfig, checkpoint: Path) -> None:
    """Build the run's model, put the checkpoint's weights into it and write it to `args.out`.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    from s2s_model.duplex import DuplexS2SModel
    from s2s_model.lora import merge_lora
    from s2s_model.model_section import without_weights
    from s2s_model.weights import cast_weights, put_weights, read_checkpoint

    saved = read_checkpoint(checkpoint)
    model = DuplexS2SModel(without_weights(asdict(cfg.model)), frame_length_s=cfg.data.frame_length)
    put_weights(model, saved["state_dict"], str(checkpoint))
    if args.merge_lora:
        merge_lora(model.llm)
    if args.dtype is not None:
        cast_weights(model, args.dtype)
    model.save_pretrained(args.out, with_codec=args.with_codec)
    print(_written(args, checkpoint, saved.get("global_step"), model))


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


def _find_checkpoint(args: ExportArgs, run: RunFolder) -> Path:
    if args.run.suffix == ".ckpt":
        if args.checkpoint != LAST:
            raise ValueError(f"--checkpoint {args.checkpoint}: {args.run} is a checkpoint itself, give one of them")
        return _existing(run, args.run)
    if args.checkpoint == LAST:
        return _existing(run, run.last_checkpoint)
    if args.checkpoint == BEST:
        return _best(run)
    given = Path(args.checkpoint)
    return given if given.exists() else _existing(run, run.checkpoints / given.name)


def _existing(run: RunFolder, checkpoint: Path) -> Path:
    if whole_path(checkpoint).exists():
        return checkpoint
    others = _others(run)
    raise FileNotFoundError(
        f"no checkpoint at {checkpoint}: {'give' if others else 'the run has saved none yet'}{others}"
    )


def _others(run: RunFolder) -> str:
    names = _checkpoints(run)
    return f" one of {', '.join(names)}" if names else ""


def _checkpoints(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.glob("*.ckpt"))


def _best(run: RunFolder) -> Path:
    """The checkpoint that the run's last one records as best, by the metric that the run monitored."""
    from s2s_model.weights import read_checkpoint

    last = _existing(run, run.last_checkpoint)
    callbacks = read_checkpoint(last).get("callbacks", {})
    recorded = [state for state in callbacks.values() if isinstance(state, dict) and state.get("best_model_path")]
    if not recorded:
        raise ValueError(f"--checkpoint best: {last} records none, as nothing was validated yet:{_others(run)}")
    return _existing(run, run.checkpoints / Path(recorded[0]["best_model_path"]).name)  # the run may have moved


def _near(run: Path) -> str:
    """A hint at the run that may be meant, of those that have a checkpoint."""
    if in_runs := _in_runs(run):
        return in_runs
    parent = run.parent if run.parent.is_dir() and run.parent != Path() else Path(DEFAULT_RUNS_DIR)
    names = [path.name for path in parent.glob("*") if _checkpoints(RunFolder(path))]
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
