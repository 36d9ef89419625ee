"""``s2s-data encode``."""

import argparse
import os


def add_to(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser("encode", help="store the agent's audio as codes beside the rest")
    parser.add_argument("data", metavar="SHAR|BLEND.yaml", help="a Shar folder, or the YAML file of a blend")
    parser.add_argument("out", metavar="OUT", help="a folder; the Shar itself adds the codes there")
    parser.add_argument(
        "--codec",
        required=True,
        metavar="MODULE:FUNCTION",
        help="makes the codec, as s2s_model.codecs:load_codec does",
    )
    parser.add_argument("--codec-args", nargs="+", default=[], metavar="KEY=VALUE", help="what it is called with")
    parser.add_argument("--device", default="cpu", help="where the codec runs: cpu, cuda, cuda:1 (cpu)")
    parser.add_argument(
        "--batch-duration", type=float, default=120.0, metavar="S", help="most audio in a batch, seconds (120)"
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="most dialogues in a batch (64)")
    parser.add_argument(
        "--rank",
        type=int,
        metavar="R",
        help="which share of the shards to encode (SLURM_ARRAY_TASK_ID, else RANK, else 0)",
    )
    parser.add_argument(
        "--world-size",
        type=int,
        metavar="W",
        help="of how many (SLURM_ARRAY_TASK_COUNT, else WORLD_SIZE, else 1)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace codes of another codec")
    parser.add_argument(
        "--on-error",
        choices=["skip", "stop"],
        default="stop",
        help="at audio that can't be read: skip stores no codes for it (stop)",
    )
    parser.set_defaults(run=run, goes_on=True)


def run(args: argparse.Namespace) -> int:
    """Encode."""
    from s2s_data.codec_factory import make_codec
    from s2s_data.coded_blend import BLEND_FILE, encode_blend
    from s2s_data.codes import EncodeOptions, encode_shar
    from s2s_data.commands.bars import DialogueBar
    from s2s_data.inputs import BLEND_SUFFIXES

    rank, world_size = _share(args)
    options = EncodeOptions(
        batch_duration_s=args.batch_duration,
        batch_size=args.batch_size,
        device=args.device,
        rank=rank,
        world_size=world_size,
        overwrite=args.overwrite,
        on_error=args.on_error,
    )
    codec = make_codec(args.codec, args.codec_args)
    is_blend = args.data.endswith(BLEND_SUFFIXES)
    encode = encode_blend if is_blend else encode_shar
    with DialogueBar("encode") as bar:
        summary = encode(args.data, args.out, codec, options, bar.reporter())
    print(f"codec {codec.fingerprint}, rank {rank} of {world_size}")
    print("\n".join(summary.lines()))
    if is_blend:
        print(f"the blend of them: {os.path.join(args.out, BLEND_FILE)}")
    return 0


def _share(args: argparse.Namespace) -> tuple[int, int]:
    from s2s_data.array_rank import rank_and_world_size
    from s2s_data.errors import DataError

    if (args.rank is None) != (args.world_size is None):
        raise DataError("of --rank and --world-size only one is given: give both")
    return rank_and_world_size(os.environ) if args.rank is None else (args.rank, args.world_size)
