"""The command line of `validate`, `test` and `predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from s2s_train.cli_parts import Commands, add_command, add_config
from s2s_train.config import load_named

_VALIDATE_EXAMPLES = """
examples:
  validate my.yaml                                        the run's last checkpoint
  validate my.yaml ckpt=best                              the best by exp_manager's monitor
  validate runs/demo/config.yaml ckpt=step=500.ckpt       one of the run's checkpoints/, or any path
  validate my.yaml ckpt=none                              the weights that the config itself gives
  validate my.yaml model.scoring_asr=none trainer.limit_val_batches=2
  validate my.yaml trainer.devices=2 trainer.strategy._target_=s2s_parallel.strategy.MeshStrategy

Results go to validations/ in the run's folder: metrics.jsonl, samples/, report.html. The run itself stays as it is.
Exit codes: as for fit.
"""

_TEST_EXAMPLES = """
examples:
  test my.yaml                                        the run's last checkpoint, on data.test_ds
  test my.yaml ckpt=best                              the best by exp_manager's monitor
  test my.yaml data.test_ds.datasets.noisy.shar_path=/data/noisy data.test_ds.batch_size=8
  test runs/demo/config.yaml data.test_ds='${data.validation_ds}'

data.test_ds has the keys of data.validation_ds; trainer.limit_test_batches is how many batches of each set. Metrics
are those of validation, test_asr_bleu for val_asr_bleu. Results go to tests/ in the run's folder: metrics.jsonl,
samples/, report.html. Exit codes: as for fit.
"""

_PREDICT_EXAMPLES = """
examples:
  predict runs/demo question.wav --out answers                  the run's last checkpoint answers a file
  predict runs/demo set:heldout --out answers --checkpoint best a set of the run's validation_ds or test_ds
  predict exported/demo /data/calls --channel 0 --out answers   all audio of a folder, the left channel is the user
  predict exported/demo /data/shar --out answers --batch-size 32 --dtype bfloat16
  predict exported/demo question.wav --out warm --sampling text.temperature=0.7 audio.temperature=0.9 audio.top_k=50

DIR gets predictions.jsonl, one line a recording (id, text, turns with their seconds, file names), and for each
ID.agent.wav, the agent alone, and ID.wav, the user on the left and the agent on the right. An answer is as long as what
was heard. It takes one process. Exit codes: as for fit.
"""


def add_validate(commands: Commands[Any]) -> None:
    """Add `validate`."""
    validate = add_command(
        commands,
        "validate",
        "score a checkpoint on the validation sets",
        "Validate a checkpoint of the run that CFG describes, on any number of devices.",
        _VALIDATE_EXAMPLES,
    )
    add_config(validate)
    validate.set_defaults(run_command=run_evaluation)


def add_test(commands: Commands[Any]) -> None:
    """Add `test`."""
    test = add_command(
        commands,
        "test",
        "score a checkpoint on the test sets",
        "As validate, on the sets of data.test_ds.",
        _TEST_EXAMPLES,
    )
    add_config(test)
    test.set_defaults(run_command=run_evaluation)


def run_evaluation(args: argparse.Namespace) -> int:
    """Check the config and look for the checkpoint before the slow imports; return the exit code."""
    asked = [override.removeprefix("ckpt=") for override in args.overrides if override.startswith("ckpt=")]
    cfg = load_named(args.cfg, [override for override in args.overrides if not override.startswith("ckpt=")])
    from s2s_train.find_checkpoint import LAST, find_checkpoint
    from s2s_train.run_folder import RunFolder

    ckpt = asked[-1] if asked else LAST
    checkpoint = None if ckpt in ("none", "null") else find_checkpoint(RunFolder.of(cfg), ckpt, "ckpt")
    from s2s_train.composition import build_model, build_scorers
    from s2s_train.validate import TEST, VALIDATION, validate

    validate(cfg, checkpoint, build_model, build_scorers, TEST if args.command == TEST.name else VALIDATION)
    return 0


def add_predict(commands: Commands[Any]) -> None:
    """Add `predict`."""
    predict = add_command(
        commands,
        "predict",
        "answer recordings with a trained model",
        "Let a run's or an exported model answer recordings, and write what it says.",
        _PREDICT_EXAMPLES,
    )
    predict.add_argument("model", metavar="MODEL", type=Path, help="a run's folder, a checkpoint in it, or an export")
    predict.add_argument("inputs", metavar="INPUT", nargs="+", help="audio file, folder of them, Shar folder, set:NAME")
    predict.add_argument("--out", metavar="DIR", type=Path, required=True, help="the folder to write: new, or empty")
    predict.add_argument("--checkpoint", metavar="FILE", default="last", help="of a run: last (default), best, a file")
    predict.add_argument("--batch-size", metavar="B", type=int, default=8, help="recordings at once (default: 8)")
    predict.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    predict.add_argument("--dtype", help="bring the weights to bfloat16, float16 or float32 (default: as saved)")
    predict.add_argument("--channel", metavar="N", type=int, help="the user's, of files with several; 0 is the left")
    predict.add_argument(
        "--sampling",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="keys of model.generation: temperature, top_k, top_p of text, audio and user_text (default: the model's)",
    )
    predict.add_argument("--seed", metavar="N", type=int, default=0, help="of what is drawn (default: 0)")
    predict.set_defaults(run_command=run_predict)


def run_predict(args: argparse.Namespace) -> int:
    """Check model, inputs and target before the slow imports; return the exit code."""
    from s2s_train.predict import PredictArgs, predict, prepare

    asked = PredictArgs(
        model=args.model,
        inputs=args.inputs,
        out=args.out,
        checkpoint=args.checkpoint,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        channel=args.channel,
        sampling=_sampling(args.sampling),
        seed=args.seed,
    )
    print(predict(asked, prepare(asked)))
    return 0


def _sampling(given: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    for each in given:
        if "=" not in each:
            raise ValueError(f"--sampling {each} isn't key=value, such as text.temperature=0.7")
    plain = OmegaConf.to_container(OmegaConf.from_dotlist(given))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
