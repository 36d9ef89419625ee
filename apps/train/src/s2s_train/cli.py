"""The command line: parse, check the config, run; what the user can mend is said in one line."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from s2s_train.calibrate_cli import add_calibrate
from s2s_train.cli_parts import add_command, add_config
from s2s_train.config import load_config, load_named
from s2s_train.evaluate_cli import add_predict, add_test, add_validate
from s2s_train.hush import hush
from s2s_train.launch import IntermixedParser, add_launch
from s2s_train.profile_cli import add_profile

USER_ERROR = 2  # exit code, as argparse's own

_DESCRIPTION = """
Train full-duplex speech-to-speech models. A run is a YAML config with the key names of NeMo's s2s_duplex.yaml
(sections model, data, trainer, exp_manager); it writes runs/NAME/ and, started again, goes on from there.
"""
_FIT_EXAMPLES = """
examples:
  fit apps/train/conf/demo.yaml                                       train the demo, or go on with it
  fit apps/train/conf/demo.yaml trainer.max_steps=6000                go on for longer
  fit my.yaml name=try2 model.optimizer.lr=1e-4                       another run folder and rate
  fit my.yaml data.validation_ds.datasets.test.shar_path=/data/test   one more validation set
  fit my.yaml trainer.accelerator=gpu trainer.devices=-1 trainer.strategy=ddp trainer.precision=bf16-true

A run folder holds config.yaml (everything, defaults too), metrics.jsonl, checkpoints/, samples/, report.html.
Exit codes: 0 done, or the SLURM job was requeued; 2 something you can mend, said in one line; 1 a defect, with its
traceback; 124 hung (RUN/hang-rank<N>.txt shows where); 130, 138, 143 stopped by Ctrl-C, SIGUSR1, SIGTERM, and saved.
"""

_EXPORT_EXAMPLES = """
examples:
  export runs/demo exported/demo                                the run's last checkpoint, with the codec
  export runs/demo exported/demo --checkpoint best              the best by exp_manager's monitor
  export runs/demo/checkpoints/step=500.ckpt exported/early     this one
  export runs/lora exported/lora --merge-lora --dtype bfloat16  adapters folded in, half the size

OUT is a folder without pickle: config.json, model.safetensors, llm/ (config and tokenizer), codec/. Load it with
DuplexS2SModel.from_pretrained("OUT"). An export that is there already is replaced, anything else is left alone.
Exit codes: as for fit.
"""

_PLAN_EXAMPLES = """
examples:
  plan my.yaml                                                   the mesh that trainer.strategy asks for, and all others
  plan my.yaml --world-size 64 --gpu h200-141gb                  other hardware
  plan my.yaml --batch-size 16 --duration 20                     another batch: dialogues, seconds
  plan my.yaml model.pretrained_llm=/models/qwen3-32b trainer.precision=bf16-true
  plan my.yaml model.pretrained_llm=/configs/llama-30b --codec 8x4032   a config.json will do; no codec at hand

No GPU is used and no weights are read: of the LLM its config is enough. Activations
are measured on tensors without data; speed is arithmetic on the constants printed last, and rougher: docs/plan.md.
Exit codes: as for fit.
"""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="s2s_train", description=textwrap.dedent(_DESCRIPTION))
    intermixed: type[argparse.ArgumentParser] = IntermixedParser
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=intermixed)
    _add_fit(commands)
    add_validate(commands)
    add_test(commands)
    add_predict(commands)
    _add_export(commands)
    _add_plan(commands)
    add_calibrate(commands)
    add_profile(commands)
    add_launch(commands)
    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="show the traceback of every error")
    return parser


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = add_command(
        commands,
        "fit",
        "train, validate and write the report",
        "Train what CFG describes, from the run's last checkpoint if it has one.",
        _FIT_EXAMPLES,
    )
    add_config(fit)
    fit.set_defaults(run_command=lambda args: run_fit(args.cfg, args.overrides))


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = add_command(
        commands,
        "export",
        "write a run's model to a folder that from_pretrained loads",
        "Write the model of a run to OUT: weights, config, tokenizer and codec.",
        _EXPORT_EXAMPLES,
    )
    export.add_argument("run", metavar="RUN", type=Path, help="a run's folder (runs/NAME), or a .ckpt file of one")
    export.add_argument("out", metavar="OUT", type=Path, help="the folder to write")
    export.add_argument(
        "--checkpoint",
        metavar="FILE",
        default="last",
        help="a file of RUN/checkpoints; last (default); or best, by exp_manager.checkpoint_callback_params.monitor",
    )
    export.add_argument("--merge-lora", action="store_true", help="fold the adapters of model.lora into the weights")
    export.add_argument("--dtype", help="bring all weights to bfloat16, float16 or float32 (default: as trained)")
    export.add_argument("--without-codec", action="store_true", help="leave the codec out; the config names it")
    export.set_defaults(run_command=run_export)


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    plan = add_command(
        commands,
        "plan",
        "estimate memory and speed of a run, without a GPU",
        "Print what the run of CFG takes of each GPU, and which mesh suits it.",
        _PLAN_EXAMPLES,
    )
    add_config(plan)
    plan.add_argument("--gpu", default="h100-80gb", help="its memory and speed count (default: h100-80gb)")
    plan.add_argument("--world-size", type=int, metavar="N", help="GPUs in all (default: trainer.devices × num_nodes)")
    plan.add_argument("--gpus-per-node", type=int, metavar="N", default=8, help="behind one fast link (default: 8)")
    plan.add_argument(
        "--batch-size", type=int, metavar="B", help="dialogues a batch (default: as data.train_ds has it)"
    )
    plan.add_argument(
        "--duration", type=float, metavar="SECONDS", help="of each (default: the longest of data.train_ds)"
    )
    plan.add_argument(
        "--codec", metavar="KxENTRIES", help="the codec's codebooks and their size, instead of loading it"
    )
    plan.set_defaults(run_command=run_plan)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    args = build_parser().parse_args(argv)
    hush()
    try:
        exit_code: int = args.run_command(args)
    except Exception as error:
        if args.debug or not _can_be_mended(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return exit_code


def _can_be_mended(error: Exception) -> bool:
    """Whether the user's config, data or machine is the cause; else it is a defect, and the traceback tells more."""
    mendable: tuple[type[Exception], ...] = (ValueError, OSError, OmegaConfBaseException, FloatingPointError)
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    if lightning:
        mendable += (lightning.MisconfigurationException,)
    return isinstance(error, mendable)


def run_fit(path: Path, overrides: Sequence[str]) -> int:
    """Check the config first, so that a typo is told before the slow imports (NeMo alone takes 15 s).

    Returns the exit code: 0, or that of the signal which stopped the run.
    """
    cfg = load_named(path, overrides)
    from s2s_train.composition import build_model, build_scorers
    from s2s_train.fit import RunStopped, fit, say

    try:
        fit(cfg, build_model, build_scorers)
    except RunStopped as stopped:
        say(str(stopped), sys.stderr)
        return stopped.exit_code
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Check run, checkpoint and target before the slow imports; return the exit code."""
    from s2s_train.export import ExportArgs, export, prepare

    asked = ExportArgs(args.run, args.out, args.checkpoint, args.merge_lora, args.dtype, not args.without_codec)
    export(asked, *prepare(asked))
    return 0


def run_plan(args: argparse.Namespace) -> int:
    """Check the config before the slow imports; return the exit code."""
    cfg = load_config(args.cfg, args.overrides)
    from s2s_train.plan import PlanArgs, make_plan
    from s2s_train.plan_report import print_plan

    asked = PlanArgs(args.gpu, args.world_size, args.gpus_per_node, args.batch_size, args.duration, args.codec)
    print_plan(make_plan(cfg, asked))
    return 0
