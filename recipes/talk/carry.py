"""Carry a run to another machine in small files: what it has trained, without the optimizer's moments.

    hatch run recipe:carry pack runs/talk_carried parts
    hatch run recipe:carry unpack parts runs/talk_carried     # there; then train:fit goes on

A checkpoint holds the frozen weights too, and AdamW's two moments. Frozen weights are made anew there (by make_llm.py,
the encoder's of the published encoder.nemo) and have to be the same to the last bit, which `unpack` checks. The moments
start at zero again: some tens of steps of AdamW without experience, at the step, rate and place in the data where the
run stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel
    from s2s_train.config import AppConfig

MIB = 2**20
USER_ERROR = 2  # exit code, as argparse's own
CONFIG, REST, WEIGHTS = "config.yaml", "rest.ckpt", "weights-{:02d}.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or unpack; return the exit code."""
    args = parse(arguments)
    try:
        said = pack(args) if args.command == "pack" else unpack(args)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    print(said)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="write a run's checkpoint as small files")
    packing.add_argument("run", type=Path)
    packing.add_argument("parts", type=Path, help="the folder to write, new or empty")
    packing.add_argument(
        "--checkpoint", default="last", help="a file of RUN/checkpoints; last (default); or best, by the run's monitor"
    )
    packing.add_argument(
        "--dtype", choices=("bfloat16",), help="round float32 weights to it, in half the space (as they are)"
    )
    packing.add_argument("--part-mib", type=float, default=16, help="the largest file (16)")
    packing.add_argument("--total-mib", type=float, default=64, help="the most of all files (64)")
    unpacking = commands.add_parser("unpack", help="make a run's folder of them, which train:fit goes on from")
    unpacking.add_argument("parts", type=Path)
    unpacking.add_argument("run", type=Path, help="the run's folder, without a checkpoint yet")
    unpacking.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, where paths differ there")
    return parser.parse_args(arguments)


def pack(args: argparse.Namespace) -> str:
    """Write the parts; return what to say.

    Raises:
        OSError, ValueError: no such run, `parts` isn't empty, or it takes more than it may.
    """
    from s2s_model.model_section import without_weights
    from s2s_model.weights import read_checkpoint
    from s2s_train.export import find_trained

    if args.parts.exists() and any(args.parts.iterdir()):
        raise FileExistsError(f"{args.parts} isn't empty: give a new folder")
    cfg, path = find_trained(args.run, args.checkpoint)
    checkpoint = read_checkpoint(path)
    state = checkpoint.pop("state_dict")
    model = build(cfg, without_weights(asdict(cfg.model)))
    frozen = frozen_names(model)
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}  # not windows and filters
    trained, tied = each_once({name: value for name, value in state.items() if name not in frozen})
    rounded = [name for name in trained if args.dtype and name in weights and trained[name].dtype == torch.float32]
    trained |= {name: trained[name].to(getattr(torch, args.dtype)) for name in rounded}
    files = into_files(trained, args.part_mib * MIB)
    rest = without_moments(checkpoint) | {"tied": tied, "rounded": rounded}
    rest["codec"] = model.audio_codec.fingerprint
    rest["frozen"] = {name: fingerprint(state[name]) for name in frozen & state.keys()}
    write(files, rest, args.run / CONFIG, args.parts)
    size_mib = sum(part.stat().st_size for part in args.parts.iterdir()) / MIB
    if size_mib > args.total_mib:
        shutil.rmtree(args.parts)
        raise ValueError(
            f"the parts take {size_mib:.1f} MiB and may take {args.total_mib:g}: round float32 weights (--dtype"
            " bfloat16), train less (a smaller model.lora.r, vocabulary or encoder), or raise --total-mib"
        )
    how = f", {len(rounded)} weights rounded to {args.dtype}" if rounded else ""
    return f"{args.parts}: step {rest.get('global_step')} of {path}, {size_mib:.1f} MiB in {len(files) + 2} files{how}"


def unpack(args: argparse.Namespace) -> str:
    """Write the run's folder; return what to say.

    Raises:
        OSError, ValueError: parts are missing, the run has a checkpoint, or frozen weights are others here.
    """
    from safetensors.torch import load_file

    from s2s_parallel.checkpoint import AtomicCheckpointIO
    from s2s_train.config import load_config
    from s2s_train.run_folder import RunFolder

    run = RunFolder(args.run)
    if run.newest_checkpoint():
        raise FileExistsError(f"{args.run} has a checkpoint already: move it away, or give another folder")
    cfg = load_config(args.parts / CONFIG, args.overrides)
    rest = AtomicCheckpointIO().load_checkpoint(args.parts / REST)
    state: dict[str, Tensor] = {}
    for index in range(rest.pop("num_files")):
        state |= load_file(args.parts / WEIGHTS.format(index))
    state |= {name: state[name].float() for name in rest.pop("rounded", [])}
    state |= {name: state[other] for name, other in rest.pop("tied", {}).items()}
    frozen = rest.pop("frozen")
    if not any(name.startswith("perception.") for name in frozen):
        cfg.model.pretrained_asr = None  # what it became is carried
    cfg.model.pretrained_lora = None  # as well
    model = build(cfg, asdict(cfg.model))
    if (codec := rest.pop("codec", None)) != model.audio_codec.fingerprint:
        raise ValueError(
            f"{cfg.model.pretrained_audio_codec} is codec {model.audio_codec.fingerprint}, and the run speaks by"
            f" {codec}: take the one that it was trained with (model.pretrained_audio_codec=..)"
        )
    state |= made_anew(model.state_dict(), frozen)
    cfg.exp_manager.explicit_log_dir = str(args.run)
    run.prepare(cfg)  # for what reads a run's config: validate, export
    AtomicCheckpointIO().save_checkpoint(rest | {"state_dict": state}, run.last_checkpoint)
    return f"{run.last_checkpoint}: step {rest.get('global_step')}; go on with train:fit"


def build(cfg: AppConfig, section: Any) -> DuplexS2SModel:
    """The model that a `model` section describes."""
    from s2s_model.duplex import DuplexS2SModel

    return DuplexS2SModel(section, frame_length_s=cfg.data.frame_length)


def frozen_names(model: torch.nn.Module) -> set[str]:
    """Names of the parameters that aren't trained, tied ones by each of their names."""
    return {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}


def without_moments(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint with optimizers that have done no step yet, at the rates where they are."""
    states = [{**state, "state": {}} for state in checkpoint.get("optimizer_states", [])]
    return checkpoint | {"optimizer_states": states}


def each_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without those that are others' too, and whose they are."""
    first: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    for name, value in state.items():
        owner = first.setdefault((value.data_ptr(), value.dtype, value.shape, value.stride()), name)
        if owner != name and value.numel():
            tied[name] = owner
    return {name: value for name, value in state.items() if name not in tied}, tied


def into_files(state: Mapping[str, Tensor], limit_bytes: float) -> list[dict[str, Tensor]]:
    """Share tensors out to files of at most `limit_bytes`, the large ones first, each into the first with room.

    Raises:
        ValueError: a tensor is larger than that.
    """
    files: list[dict[str, Tensor]] = []
    room: list[float] = []
    for name, value in sorted(state.items(), key=lambda item: -item[1].nbytes):
        needed = value.nbytes + 256  # its line in the file's head
        if needed > limit_bytes:
            raise ValueError(
                f"{name} takes {needed / MIB:.1f} MiB, a file {limit_bytes / MIB:g}: freeze it, make it smaller (of a"
                " vocabulary: make_llm.py --vocabulary), or raise --part-mib"
            )
        index = next((i for i, left in enumerate(room) if left >= needed), len(files))
        if index == len(files):
            files.append({})
            room.append(limit_bytes)
        files[index][name] = value.contiguous()
        room[index] -= needed
    return files


def write(files: Sequence[dict[str, Tensor]], rest: dict[str, Any], config: Path, parts: Path) -> None:
    """Write all files to the folder `parts`."""
    from safetensors.torch import save_file

    from s2s_parallel.checkpoint import AtomicCheckpointIO

    parts.mkdir(parents=True, exist_ok=True)
    for index, tensors in enumerate(files):
        save_file(tensors, parts / WEIGHTS.format(index))
    AtomicCheckpointIO().save_checkpoint(rest | {"num_files": len(files)}, parts / REST)
    shutil.copyfile(config, parts / CONFIG)


def fingerprint(value: Tensor) -> list[str]:
    """A tensor's dtype and a hash of its bytes."""
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return [str(value.dtype).removeprefix("torch."), hashlib.sha256(data).hexdigest()]


def made_anew(own: Mapping[str, Tensor], frozen: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    """The tensors of `own` that `frozen` names, in the dtypes that it names.

    Raises:
        ValueError: one is missing, or isn't the one that was trained with.
    """
    made: dict[str, Tensor] = {}
    for name, (dtype, digest) in frozen.items():
        value = own[name].to(getattr(torch, dtype)) if name in own else None
        if value is None or fingerprint(value)[1] != digest:
            raise ValueError(
                f"{name} isn't what the run was trained with: make model.pretrained_llm by make_llm.py of the same"
                " package and --vocabulary as there, take the same encoder.nemo, and keep model.pretrained_weights=true"
            )
        made[name] = value
    return made


if __name__ == "__main__":
    raise SystemExit(main())
