"""Make what the recipe trains on and with: the corpus, codec, LLM, codes, encoder, times of words, and the reader.

    hatch run recipe:prepare talk
    hatch run recipe:prepare talk --llm-vocabulary 8192    # for talk_carried.yaml
    mkdir talk; cp recipes/talk/*.nemo talk    # before it: the published codec and encoder, not ones trained anew

What is there already stays: the same command goes on where it broke off, and takes a `codec.nemo` or an
`encoder.nemo` that was put there. Both need a GPU: the codec is trained while the cores speak the corpus, the encoder
then, on the corpus. So does what talk_carried.yaml's LLM reads before it hears (recipe:read).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
USER_ERROR = 2  # exit code, as argparse's own


def main(arguments: Sequence[str] | None = None) -> int:
    """Make what is missing; return the exit code."""
    args = parse(arguments)
    try:
        check_gpu(args)
        with ThreadPoolExecutor(max_workers=1) as beside:
            codec = beside.submit(train_codec, args.folder, args.codec_minutes)
            speak_corpus(args)
            make_llm(args)
            codec.result()
        store_codes(args.folder)
        train_encoder(args.folder, args.encoder_minutes, args.processes)
        align_words(args.folder)
        teach_to_read(args)
    except subprocess.CalledProcessError as error:
        print(f"prepare: {Path(error.cmd[1]).name} ended with {error.returncode}, as told above", file=sys.stderr)
        return USER_ERROR
    except (OSError, ValueError, ImportError) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="corpus/, text/, noise/, rooms/, llm/, .. go there")
    parser.add_argument("--hours", type=float, default=110.0, help="of training dialogues (default: 110)")
    parser.add_argument("--heldout", type=int, default=96, help="dialogues of each held-out set (default: 96)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="that speak and, later, load (default: one a core)"
    )
    parser.add_argument("--codec-minutes", type=float, default=7.5, help="of training the codec (default: 7.5)")
    parser.add_argument("--encoder-minutes", type=float, default=5.0, help="of training the encoder (default: 5)")
    parser.add_argument(
        "--reader-minutes",
        type=float,
        default=4.0,
        help="of reading; 0: none, as a run goes on (default: 4)",
    )
    parser.add_argument(
        "--llm-vocabulary", type=int, metavar="N", help="as recipe:llm has it: then llm-N/, not llm/, and reader-N/"
    )
    parser.add_argument("--llm-wheel", type=Path, help="as recipe:llm's --wheel")
    return parser.parse_args(arguments)


def check_gpu(args: argparse.Namespace) -> None:
    """Refuse a machine that can't make what is missing, before anything is made.

    Raises:
        OSError: something that is trained isn't there, and no GPU is.
    """
    reader = reader_folder(args)
    for path in (args.folder / "codec.nemo", args.folder / "encoder.nemo", *([] if reader is None else [reader])):
        if not path.exists() and not _has_gpu():
            raise OSError(f"there is no {path}, and no GPU to train it on: make it elsewhere, and put it there")


def train_codec(folder: Path, minutes: float) -> None:
    """Train `codec.nemo`, from the demo's on, on what the agent says in the corpus; in processes of their own.

    Raises:
        subprocess.CalledProcessError: what went wrong has been printed.
    """
    codec, speech, part = folder / "codec.nemo", folder / "speech", folder / "part.nemo"
    if codec.exists():
        return
    if not speech.exists():
        _run("demo/speech.py", folder / "speech.part", "--of", "talk")
        (folder / "speech.part").rename(speech)
    start = ("--start", ROOT / "demo/codec.nemo", "--answers", 0.75)
    _run("demo/train_codec.py", speech, part, *start, "--minutes", minutes)
    part.rename(codec)


def speak_corpus(args: argparse.Namespace) -> None:
    """Build corpus/, text/, noise/ and rooms/, or go on where that broke off.

    Raises:
        FileNotFoundError: a corpus is there without its text/.
    """
    from s2s_data.talk import TalkConfig, build_talk_corpus
    from s2s_data.talk.corpus import TEXT, UNFINISHED

    if (args.folder / "corpus").exists() and not (args.folder / UNFINISHED).exists():
        if not (args.folder / TEXT).exists():
            raise FileNotFoundError(
                f"{args.folder / TEXT}: no such folder beside corpus/, which an earlier version made: move corpus/, "
                "noise/ and rooms/ away, and they are made anew with it"
            )
        return
    config = replace(TalkConfig(), hours=args.hours, num_heldout=args.heldout)
    build_talk_corpus(args.folder, config, num_processes=args.processes, progress=print)


def make_llm(args: argparse.Namespace) -> None:
    """Make llm/, or llm-8192/ for a vocabulary of 8,192.

    Raises:
        subprocess.CalledProcessError: what went wrong has been printed.
    """
    kept, out = args.llm_vocabulary, llm_folder(args)
    if not out.exists():
        vocabulary = () if kept is None else ("--vocabulary", kept)
        wheel = () if args.llm_wheel is None else ("--wheel", args.llm_wheel)
        _run("recipes/talk/make_llm.py", out, *vocabulary, *wheel)


def llm_folder(args: argparse.Namespace) -> Path:
    """Where the LLM goes."""
    folder: Path = args.folder
    return folder / ("llm" if args.llm_vocabulary is None else f"llm-{args.llm_vocabulary}")


def store_codes(folder: Path) -> None:
    """Store the codec's codes with each set of the corpus; those that are there already stay."""
    from s2s_data.codes import EncodeOptions, encode_shar
    from s2s_data.talk.corpus import TEXT
    from s2s_model.codecs import load_codec

    codec = load_codec(str(folder / "codec.nemo"))
    options = EncodeOptions(device="cuda" if _has_gpu() else "cpu")
    for shar in (*sorted((folder / "corpus").iterdir()), folder / TEXT):
        print("\n".join(encode_shar(str(shar), str(shar), codec, options).lines()))


def train_encoder(folder: Path, minutes: float, processes: int) -> None:
    """Train `encoder.nemo` on what the users say in the corpus; in a process of its own.

    Raises:
        subprocess.CalledProcessError: what went wrong has been printed.
    """
    encoder, part = folder / "encoder.nemo", folder / "part-encoder.nemo"
    if not encoder.exists():
        part.unlink(missing_ok=True)
        workers = f"data.train_ds.num_workers={processes}"
        recipe = ROOT / "recipes/talk/talk.yaml"
        _run("recipes/talk/train_encoder.py", recipe, part, workers, "--minutes", minutes, TALK=folder)
        part.rename(encoder)


def align_words(folder: Path) -> None:
    """Give the users' words the times at which `encoder.nemo` hears them; those that have them stay.

    Raises:
        subprocess.CalledProcessError: what went wrong has been printed.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # it imports another recipe
    _run("recipes/talk/align.py", folder / "encoder.nemo", *sorted((folder / "corpus").iterdir()), PYTHONPATH=path)


def reader_folder(args: argparse.Namespace) -> Path | None:
    """Where what talk_carried.yaml's LLM has read goes; None: nothing is read."""
    folder: Path = args.folder
    wanted = args.llm_vocabulary is not None and args.reader_minutes > 0
    return folder / f"reader-{args.llm_vocabulary}" if wanted else None


def teach_to_read(args: argparse.Namespace) -> None:
    """Let talk_carried.yaml's LLM read what the agent answers: reader-N/; in a process of its own.

    Raises:
        subprocess.CalledProcessError: what went wrong has been printed.
    """
    reader, part = reader_folder(args), args.folder / "part-reader"
    if reader is not None and not reader.exists():
        shutil.rmtree(part, ignore_errors=True)
        recipe, llm = ROOT / "recipes/talk/talk_carried.yaml", f"model.pretrained_llm={llm_folder(args)}"
        _run("recipes/talk/read.py", recipe, part, llm, "--minutes", args.reader_minutes, TALK=args.folder)
        part.rename(reader)


def _run(script: str, *arguments: object, **environment: object) -> None:
    changed = os.environ | {name: str(value) for name, value in environment.items()}
    subprocess.run([sys.executable, str(ROOT / script), *map(str, arguments)], check=True, env=changed)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
