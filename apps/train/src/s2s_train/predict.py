"""`predict`: a trained model answers recordings; its voice, text and turns are written to a folder.

Shapes: `B` recordings of a batch, `S` samples.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from s2s_train.config import AppConfig
from s2s_train.export import find_trained, load_trained
from s2s_train.find_checkpoint import LAST
from s2s_train.recordings import Heard, check_inputs, read_inputs

if TYPE_CHECKING:
    from s2s_model.duplex import DuplexS2SModel

PREDICTIONS = "predictions.jsonl"


@dataclass(frozen=True)
class PredictArgs:
    """What the command line asks for."""

    model: Path  # an export, a run's folder, or a checkpoint in it
    inputs: list[str]  # audio files, folders of them, Shar folders, set:NAME
    out: Path  # the folder to write
    checkpoint: str = LAST  # of a run: last, best, or a file
    batch_size: int = 8  # recordings answered at once
    device: str = "auto"  # cpu, cuda, cuda:1; auto: a GPU if there is one
    dtype: str | None = None  # of the weights; None: as they were saved
    channel: int | None = None  # of audio files with several, from 0
    sampling: dict[str, Any] = field(default_factory=dict)  # over model.generation
    seed: int = 0  # of the draws


@dataclass(frozen=True)
class Trained:
    """Where the model comes from. An export has neither config nor checkpoint of a run."""

    path: Path
    cfg: AppConfig | None = None
    checkpoint: Path | None = None


def prepare(args: PredictArgs) -> Trained:
    """Check all that can be checked without the slow imports.

    Raises:
        FileNotFoundError: no such model or input.
        FileExistsError: `out` holds files already.
        ValueError: a number or an input that means nothing.
    """
    from s2s_model.pretrained import is_export

    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}: give 1 or more")
    if (args.out / PREDICTIONS).exists():
        raise FileExistsError(f"{args.out} holds predictions already: give another --out, or remove it")
    if args.out.exists() and any(args.out.iterdir()):
        raise FileExistsError(
            f"{args.out} isn't empty, and files there could have the names of answers, as recordings have: give another"
            " --out"
        )
    if is_export(args.model):
        trained = Trained(args.model)
    else:
        trained = Trained(args.model, *find_trained(args.model, args.checkpoint))
    check_inputs(args.inputs, trained.cfg)
    return trained


def predict(args: PredictArgs, trained: Trained) -> Path:
    """Answer every recording; return the path of `predictions.jsonl`, one line a recording in the inputs' order.

    Raises:
        ValueError, OSError: what the user can mend, each with one line that says how.
    """
    import torch

    from s2s_model.sampling import as_generation_config

    model = _load(args, trained)
    generation = as_generation_config(_over(model.cfg.generation, args.sampling))
    generator = torch.Generator(model.device).manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / PREDICTIONS
    num_done = 0
    try:
        with path.open("w", encoding="utf-8") as file:
            heard = read_inputs(args.inputs, trained.cfg, model.source_sample_rate, args.channel)
            for batch in _batches(heard, args.batch_size):
                _answer(model, batch, args.out, file, config=generation, generator=generator)
                num_done += len(batch)
                print(f"{num_done} recordings answered", flush=True)
    except BaseException:
        if not num_done:  # so that the same command can be given again
            path.unlink()
        raise
    return path


def _load(args: PredictArgs, trained: Trained) -> DuplexS2SModel:
    import torch

    from s2s_model.duplex import DuplexS2SModel
    from s2s_model.weights import cast_weights

    device = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    if trained.cfg is None or trained.checkpoint is None:
        return DuplexS2SModel.from_pretrained(trained.path, device=device, dtype=args.dtype)
    model, _ = load_trained(trained.cfg, trained.checkpoint)
    if args.dtype is not None:
        cast_weights(model, args.dtype)
    return model.to(device).eval()


def _over(generation: Any, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """`model.generation` with what the command sets otherwise."""
    from omegaconf import OmegaConf

    merged = OmegaConf.merge(OmegaConf.to_container(OmegaConf.structured(generation)), dict(sampling))
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _batches(heard: Iterable[Heard], size: int) -> Iterator[list[Heard]]:
    iterator = iter(heard)
    while batch := list(islice(iterator, size)):
        yield batch


def _answer(model: DuplexS2SModel, batch: list[Heard], out: Path, file: TextIO, **how: Any) -> None:
    import torch

    lens = [len(heard.audio_S) for heard in batch]
    audio_BS = torch.zeros(len(batch), max(lens))
    for row, heard in zip(audio_BS, batch, strict=True):
        row[: len(heard.audio_S)] = torch.from_numpy(heard.audio_S)
    lens_B = torch.tensor(lens, device=model.device)
    answer = model.offline_inference(audio_BS.to(model.device), lens_B, decode_audio=False, **how)
    for index, heard in enumerate(batch):
        spoken_S = _voice(model, answer, index)
        line = _describe(heard, answer, index, model.source_sample_rate)
        _write_wavs(out, line, heard.audio_S, model.source_sample_rate, spoken_S, model.target_sample_rate)
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    file.flush()


def _voice(model: DuplexS2SModel, answer: Mapping[str, Any], index: int) -> Any:
    """One recording's answer [S], decoded alone: codecs look ahead, and would hear a longer neighbour's padding."""
    num_frames_1 = answer["tokens_len"][index : index + 1]
    codes_1TK = model.speakable(answer["tokens_audio"][index : index + 1, : int(num_frames_1)])
    audio_1S, num_samples_1 = model.audio_codec.decode(codes_1TK, num_frames_1)
    return audio_1S[0, : int(num_samples_1)].float().cpu().numpy()


def _describe(heard: Heard, answer: Mapping[str, Any], index: int, rate_hz: int) -> dict[str, Any]:
    name = _file_name(heard.id)
    line: dict[str, Any] = {
        "id": heard.id,
        "input": heard.source,
        "duration_s": round(len(heard.audio_S) / rate_hz, 3),
        "text": answer["text"][index],
        "turns": _turns(answer["text_turns"][index]),
        "agent_wav": f"{name}.agent.wav",
        "stereo_wav": f"{name}.wav",
    }
    if "user_text" in answer:
        line["user_text"] = answer["user_text"][index]
        line["user_turns"] = _turns(answer["user_text_turns"][index])
    return line


def _turns(turns: Iterable[tuple[float, float, str]]) -> list[dict[str, Any]]:
    return [{"start_s": round(start, 3), "end_s": round(end, 3), "text": text} for start, end, text in turns]


def _write_wavs(
    out: Path, line: Mapping[str, Any], user_S: Any, user_rate_hz: int, agent_S: Any, agent_rate_hz: int
) -> None:
    """Write the agent alone, and both: left the user, right the agent, at the agent's rate."""
    import soundfile

    from s2s_eval.samples import write_stereo

    soundfile.write(out / line["agent_wav"], agent_S, agent_rate_hz, subtype="PCM_16")
    write_stereo(out / line["stereo_wav"], user_S, user_rate_hz, agent_S, agent_rate_hz)


def _file_name(name: str) -> str:
    """A name for the file system; an id that another one's files could have gets a hash, so that no two meet."""
    safe = re.sub(r"[^\w.-]", "_", name)
    return (
        safe
        if safe == name and not name.lower().endswith(".agent")
        else f"{safe}-{hashlib.sha1(name.encode()).hexdigest()[:8]}"
    )
