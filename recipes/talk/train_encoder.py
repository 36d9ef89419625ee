"""Train the recipe's encoder as a recogniser of the corpus's users (CTC), on one GPU within minutes.

    hatch run recipe:encoder recipes/talk/talk.yaml talk/encoder.nemo --minutes 5

Encoder, features, data, noise and rooms are those of the config; of the data the user's audio and text are read. What
is written is a NeMo `EncDecCTCModel` in bfloat16, whose encoder is what `model.pretrained_asr` begins with: one at
random weights tells a language model so little that it learns to guess what the user says. Exit code 2: something is
missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import string
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from s2s_data.batch import DuplexBatch
    from s2s_data.dialogue import FloatArray
    from s2s_parallel.training_graphs import Results
    from s2s_train.config import AppConfig

PEAK_RATE, WARM_UP_STEPS, LAST_SHARE = 1e-3, 300, 0.02
ALPHABET = "▁'" + string.ascii_lowercase  # words that the training data lack can be spelt
SIZE_S = 2  # audio is padded to lengths in steps of it: few sizes, each of which is a CUDA graph
BEFORE_S, BEHIND_S = 1.5, 0.5  # of a turn: how much is heard too, before it at most
EVEN_SHARE, TURNS_SHARE = 0.2, 0.6  # of the time: before CTC, and before whole dialogues
# Of an encoder that listens already: its pieces are new, and what it knows should stay.
LISTENING_EVEN_SHARE, LISTENING_PEAK_RATE = 0.02, 5e-4
LAG_S = 0.24  # from where a piece is said to where it should be written, at first
FEATURES_MEAN, FEATURES_STD = -11.0, 4.0  # of what is said: logarithms of mel energies, which nothing normalises
LOG_EVERY_S = 15
IGNORED = -100  # of targets
USER_ERROR = 2  # exit code, as argparse's own
_NOT_SPOKEN = re.compile(r"[^a-z' ]+")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train for `--minutes`, tell the word error rates of the held-out sets, and write the recogniser."""
    args = parse(arguments)
    try:
        from s2s_train.config import load_config

        check_out(args.out)
        cfg = load_config(args.config, args.overrides)
        leave_out_text(cfg)
        pieces = Pieces(spoken(text) for text in user_texts(cfg, args.learn_from))
        trainer = EncoderTrainer(cfg, pieces, args.start)
        trainer.train(args.minutes * 60, args.batch_s)
        trainer.round_weights()
        for name, rate in trainer.word_error_rates(args.scored).items():
            print(json.dumps({"set": name, "wer_percent": round(100 * rate, 2)}), flush=True)
        trainer.save(args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog="recipe:encoder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="of the run that will use the encoder")
    parser.add_argument("out", type=Path, metavar="OUT", help="the .nemo file to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, as fit takes them")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--start", type=Path, metavar="NEMO", help="a recogniser whose encoder is trained on")
    parser.add_argument(
        "--learn-from", type=int, default=2000, help="dialogues that the pieces are learned from (2000)"
    )
    parser.add_argument("--batch-s", type=float, default=240.0, help="seconds of turns a step (240)")
    parser.add_argument("--scored", type=int, default=4, help="batches of each held-out set that are scored (4)")
    args = parser.parse_intermixed_args(arguments)
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes:g}: give it some time")
    if args.batch_s < SIZE_S:
        parser.error(f"--batch-s is {args.batch_s:g}, less than a turn: give {SIZE_S} or more")
    return args


def check_out(out: Path) -> None:
    """Refuse a file that is there, before anything is trained; make its folder.

    Raises:
        ValueError, FileExistsError: with what to do.
    """
    if out.suffix != ".nemo":
        raise ValueError(f"{out} doesn't end in .nemo, by which NeMo's files are known: name it so")
    if out.exists():
        raise FileExistsError(f"{out} is there already: give another name, or move it away")
    out.parent.mkdir(parents=True, exist_ok=True)


def user_texts(cfg: AppConfig, count: int) -> Iterator[str]:
    """What the users say in the first training dialogues, by their cuts alone."""
    from itertools import islice

    from s2s_data.loader import blend_of
    from s2s_data.roles import USER, Roles

    roles = Roles.of(cfg.data.input_roles, cfg.data.output_roles)
    for cut in islice(blend_of(cfg.data.train_ds, "data.train_ds").metadata(count), count):
        yield from (turn.text for turn in roles.turns(cut) if turn.role == USER)


def leave_out_text(cfg: AppConfig) -> None:
    """Take entries of text alone off `data.train_ds.input_cfg`: batches without their dialogues would differ in size.

    Raises:
        ValueError: nothing is left.
    """
    from s2s_data.blend import parse_blend
    from s2s_data.dataset import is_text_only
    from s2s_data.loader import blend_of

    train = cfg.data.train_ds
    if isinstance(train.input_cfg, list):
        blends = [parse_blend("data.train_ds", input_cfg=[entry]) for entry in train.input_cfg]
        spoken_entries = [
            entry
            for entry, blend in zip(train.input_cfg, blends, strict=True)
            if not all(map(is_text_only, blend.metadata(1)))
        ]
        train.input_cfg = spoken_entries or train.input_cfg
    if all(map(is_text_only, blend_of(train, "data.train_ds").metadata(1))):
        raise ValueError(
            "data.train_ds is text alone (text_only): an encoder learns from what is said, add some of that"
        )


def spoken(text: str) -> str:
    """Words in small letters, numbers among them, one space between them."""
    from s2s_data.talk.numbers import aloud

    return " ".join(_NOT_SPOKEN.sub(" ", aloud(text).lower()).split())


class Pieces:
    """Pieces of words, learned from texts: at 12.5 frames a second letters would be more than frames."""

    def __init__(self, texts: Iterable[str], size: int = 256) -> None:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁")
        self._tokenizer.decoder = decoders.Metaspace(replacement="▁")
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError(
                "the users say nothing in the data: look at it with `hatch run s2s-data show`, and name its users in "
                "data.input_roles"
            )
        trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=[*ALPHABET])
        self._tokenizer.train_from_iterator(texts, trainer)

    def labels(self) -> list[str]:
        """The pieces as CTC writes them, a space where a word begins."""
        by_piece = self._tokenizer.get_vocab()
        return [piece.replace("▁", " ") for piece in sorted(by_piece, key=by_piece.__getitem__)]

    def ids(self, text: str) -> list[int]:
        """The pieces of a text."""
        return list(self._tokenizer.encode(spoken(text)).ids)

    def text(self, ids: Sequence[int]) -> str:
        """What pieces say."""
        return str(self._tokenizer.decode(list(ids))).strip()


class Heard(NamedTuple):
    """Turns of users, or all that is heard of them in dialogues."""

    audio_BS: Tensor  # float32, padded with 0 to a multiple of `SIZE_S`
    lens_B: Tensor  # samples of each
    texts: list[str]
    spans_s: list[tuple[float, float]]  # of turns: from when to when each is said


def turn_batches(dialogues: Iterable[DuplexBatch], sample_rate: int, batch_s: float) -> Iterator[Heard]:
    """What users say in dialogues, turn by turn, with some of what is heard around.

    Whole dialogues are silent for the most part: from them it doesn't begin to listen. Batches are `batch_s` seconds
    of turns of like length.
    """
    from s2s_data.roles import USER

    rng = random.Random(0)
    # Copied by numpy: torch's threads for it would wait for cores that the loader's processes have.
    waiting: defaultdict[int, list[tuple[FloatArray, str, tuple[float, float]]]] = defaultdict(list)
    for batch in dialogues:
        for audio_S, end, turns, is_text in zip(
            batch["source_audio"], batch["source_audio_lens"].tolist(), batch["turns"], _are_text_only(batch),
            strict=True,
        ):  # fmt: skip
            for turn in turns:
                if is_text or turn.role != USER or not spoken(turn.text):
                    continue
                first = max(0, round((turn.start_s - rng.uniform(0, BEFORE_S)) * sample_rate))
                heard_S = audio_S.numpy()[first : min(end, round((turn.end_s + BEHIND_S) * sample_rate))].copy()
                size = math.ceil(len(heard_S) / (SIZE_S * sample_rate))
                begun_s = first / sample_rate
                waiting[size].append((heard_S, turn.text, (turn.start_s - begun_s, turn.end_s - begun_s)))
                if (len(waiting[size]) + 1) * size * SIZE_S > batch_s:
                    yield _batch(waiting.pop(size), size * SIZE_S * sample_rate)


def _batch(turns: Sequence[tuple[FloatArray, str, tuple[float, float]]], num_samples: int) -> Heard:
    audio_BS = np.zeros((len(turns), num_samples), dtype=np.float32)
    audio, texts, spans_s = (list(column) for column in zip(*turns, strict=True))
    for row_S, heard_S in zip(audio_BS, audio, strict=True):
        row_S[: len(heard_S)] = heard_S
    return Heard(torch.from_numpy(audio_BS), torch.tensor([len(heard_S) for heard_S in audio]), texts, spans_s)


def dialogue_batches(dialogues: Iterable[DuplexBatch], sample_rate: int) -> Iterator[Heard]:
    """All that is heard of users, as the run hears them: after other turns, and in silence."""
    for batch in dialogues:
        sounding = [i for i, is_text in enumerate(_are_text_only(batch)) if not is_text]
        if not sounding:
            continue
        audio_BS, lens_B, texts = batch["source_audio"], batch["source_audio_lens"], batch["source_texts"]
        if len(sounding) < len(texts):
            audio_BS, lens_B, texts = audio_BS[sounding], lens_B[sounding], [texts[i] for i in sounding]
        missing = -audio_BS.shape[1] % (SIZE_S * sample_rate)
        yield Heard(torch.nn.functional.pad(audio_BS, (0, missing)), lens_B, texts, [])


def _are_text_only(batch: DuplexBatch) -> list[bool]:
    given_B = batch.get("text_only")
    return [False] * len(batch["source_audio"]) if given_B is None else given_B.tolist()


def spread_evenly(ids: Sequence[int], span_s: tuple[float, float], frame_s: float) -> Iterator[tuple[int, int]]:
    """Frames of a turn, `LAG_S` late, and the piece of each, as if all pieces took as long."""
    first, count = round((span_s[0] + LAG_S) / frame_s), round((span_s[1] - span_s[0]) / frame_s)
    for i in range(count if ids else 0):
        yield first + i, ids[i * len(ids) // count]


def centre_features(encoder: Any) -> None:
    """Let the first convolution begin as if features had a mean of 0 and a deviation of 1, in place.

    What all features have in common is else nearly all that an encoder at random weights hears.
    """
    first = next((module for module in encoder.pre_encode.modules() if isinstance(module, torch.nn.Conv2d)), None)
    if first is None or first.bias is None:
        return
    with torch.no_grad():
        first.weight.div_(FEATURES_STD)
        first.bias.copy_(-FEATURES_MEAN * first.weight.sum(dim=(1, 2, 3)))


def load_recogniser(path: Path, device: torch.device | str = "cpu") -> Any:
    """NeMo's CTC model in a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    from nemo.collections.asr.models import EncDecCTCModel

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; recipe:encoder makes one, and recipes/talk has one")
    return EncDecCTCModel.restore_from(str(path), map_location=device)


def load_encoder(encoder: torch.nn.Module, path: Path) -> None:
    """Begin with the encoder of a recogniser, in place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its sizes are others.
    """
    weights = load_recogniser(path).encoder.state_dict()
    try:
        encoder.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise ValueError(f"{path}: its encoder isn't that of model.perception: {reason}") from error


class EncoderTrainer:
    """NeMo's CTC model of the config's encoder, and the batches that the run would train on."""

    def __init__(self, cfg: AppConfig, pieces: Pieces, start: Path | None = None) -> None:
        from nemo.collections.asr.models import EncDecCTCModel
        from omegaconf import OmegaConf

        from s2s_data.loader import train_dataloader, validation_dataloaders
        from s2s_data.words import WordTokenizer
        from s2s_model.perception.nemo import speed_up
        from s2s_parallel.training_graphs import TrainingGraphs

        torch.manual_seed(cfg.seed or 0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.pieces = pieces
        perception = OmegaConf.to_container(OmegaConf.create(dict(cfg.model.perception)), resolve=True)
        assert isinstance(perception, dict)
        if not perception.get("encoder") or not perception.get("preprocessor"):
            raise ValueError("model.perception has no encoder or no preprocessor: describe both, as talk.yaml does")
        labels = pieces.labels()
        config = {name: perception[name] for name in ("preprocessor", "encoder", "spec_augment") if name in perception}
        config["decoder"] = {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,  # the encoder's
            "num_classes": len(labels),
            "vocabulary": labels,
        }
        self.model = EncDecCTCModel(OmegaConf.create(config)).to(self.device)
        encoder = self.model.encoder
        self._even_share, self._peak_rate = EVEN_SHARE, PEAK_RATE
        if start is not None:
            load_encoder(encoder, start)
            self._even_share, self._peak_rate = LISTENING_EVEN_SHARE, LISTENING_PEAK_RATE
        else:
            centre_features(encoder)
        speed_up(encoder)
        self._recognise = TrainingGraphs(self._encode, self.model)
        self._sample_rate = cfg.data.source_sample_rate
        self._frame_s = encoder.subsampling_factor * perception["preprocessor"]["window_stride"]
        cfg.data.train_ds.load_target_audio = cfg.data.validation_ds.load_target_audio = False
        self._batches = train_dataloader(cfg.data, WordTokenizer())
        self._held_out = validation_dataloaders(cfg.data, WordTokenizer())
        fused = self.device.type == "cuda"
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(), PEAK_RATE, (0.9, 0.98), weight_decay=0.01, fused=fused
        )

    def train(self, seconds: float, batch_s: float) -> None:
        """Take steps for so long, each on so many seconds of turns, and tell how they go."""
        began = told = time.monotonic()
        audio_s, losses = 0.0, []
        self.model.train()
        loaded = iter(self._batches)
        turns = turn_batches(loaded, self._sample_rate, batch_s)
        dialogues = dialogue_batches(loaded, self._sample_rate)
        for step in itertools.count():
            now = time.monotonic()
            share = (now - began) / seconds
            if share >= 1 and step:
                return
            heard = next(turns if share < TURNS_SHARE or not step else dialogues)
            warm = min(1.0, (step + 1) / WARM_UP_STEPS)
            for group in self._optimizer.param_groups:
                group["lr"] = self._peak_rate * warm * max(LAST_SHARE, 0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
            evenly = share < self._even_share
            losses.append(self.step(heard, evenly=evenly))
            audio_s += heard.lens_B.sum().item() / self._sample_rate
            if now - told > LOG_EVERY_S or not step:
                loss = torch.stack(losses).mean().item()  # waits for the GPU
                line = {
                    "step": step + 1,
                    "share": share,
                    "loss": loss,
                    "of": "frames" if evenly else "pieces",
                    "audio_s_per_s": audio_s / (time.monotonic() - began),
                }
                rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()}
                print(json.dumps(rounded), flush=True)
                told, losses = now, []

    def step(self, heard: Heard, *, evenly: bool = False) -> Tensor:
        """One step; the loss, in nats a frame or a piece.

        Args:
            heard: what is learned from.
            evenly: in turns, pieces are where they would be if all took as long. That is wrong by some frames, but from
                random weights CTC finds out where they are only after thousands of steps of hardly hearing anything.
        """
        self._optimizer.zero_grad(set_to_none=True)  # now: gradients that are there would be moved before a replay
        log_probs_BTV, frames_B = self.log_probs(heard.audio_BS, heard.lens_B)
        ids = [self.pieces.ids(text) for text in heard.texts]
        if evenly:
            loss = self._even_loss(log_probs_BTV.float(), frames_B, ids, heard.spans_s)
        else:
            loss = self._ctc_loss(log_probs_BTV.float(), frames_B, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        return loss.detach()

    def _even_loss(
        self, log_probs_BTV: Tensor, frames_B: Tensor, ids: list[list[int]], spans_s: list[tuple[float, float]]
    ) -> Tensor:
        B, T, V = log_probs_BTV.shape
        pieces_BT = torch.full((B, T), V - 1)
        for row_T, row_ids, span_s in zip(pieces_BT.numpy(), ids, spans_s, strict=True):
            for frame, piece in spread_evenly(row_ids, span_s, self._frame_s):
                row_T[frame : frame + 1] = piece  # those behind the end are none
        frames_T = torch.arange(T, device=self.device)
        pieces_BT = pieces_BT.to(self.device).masked_fill(frames_T >= frames_B[:, None], IGNORED)
        return torch.nn.functional.nll_loss(log_probs_BTV.transpose(1, 2), pieces_BT, ignore_index=IGNORED)

    def _ctc_loss(self, log_probs_BTV: Tensor, frames_B: Tensor, ids: list[list[int]]) -> Tensor:
        lens_B = torch.tensor([len(row) for row in ids], device=self.device)
        every = torch.tensor([piece for row in ids for piece in row], dtype=torch.int64, device=self.device)
        loss = torch.nn.functional.ctc_loss(
            log_probs_BTV.transpose(0, 1), every, frames_B, lens_B,
            blank=log_probs_BTV.shape[2] - 1, reduction="sum", zero_infinity=True,
        )  # fmt: skip
        return loss / lens_B.sum().clamp(min=1)

    def log_probs(self, audio_BS: Tensor, lens_B: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the pieces and of none [B, T, V], and the frames of each recording [B]."""
        from s2s_model.perception.adapters import unchecked

        audio_BS = audio_BS.to(self.device, non_blocking=True)
        lens_B = lens_B.to(self.device, non_blocking=True)
        with unchecked(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            features_BFT, features_B = self.model.preprocessor(input_signal=audio_BS, length=lens_B)
            if self.model.spec_augmentation is not None and self.model.training:
                features_BFT = self.model.spec_augmentation(input_spec=features_BFT, length=features_B)
            results = self._recognise(features_BFT, features_B)
        return results.differentiable[0], results.others[0]

    def _encode(self, features_BFT: Tensor, features_B: Tensor) -> Results:
        from s2s_parallel.training_graphs import Results

        encoded_BCT, frames_B = self.model.encoder(audio_signal=features_BFT, length=features_B)
        return Results((self.model.decoder(encoder_output=encoded_BCT),), (frames_B,))

    @torch.no_grad()
    def round_weights(self) -> None:
        """To bfloat16, in place: what is scored is what is saved."""
        for weight in self.model.parameters():
            weight.copy_(weight.bfloat16())

    def save(self, path: Path) -> None:
        """Write the model with weights in bfloat16, in half the space; windows and filters stay as they are."""
        for weight in self.model.parameters():
            weight.data = weight.data.bfloat16()
        self.model.save_to(str(path))

    @torch.no_grad()
    def word_error_rates(self, num_batches: int) -> dict[str, float]:
        """Of each held-out set, by the likeliest piece of each frame."""
        from itertools import islice

        from nemo.collections.asr.metrics.wer import word_error_rate

        self.model.eval()
        rates = {}
        for name, batches in self._held_out.items():
            heard: list[str] = []
            said: list[str] = []
            for batch in islice(batches, num_batches):
                log_probs_BTV, frames_B = self.log_probs(batch["source_audio"], batch["source_audio_lens"])
                heard += self.written(log_probs_BTV, frames_B)
                said += [spoken(text) for text in batch["source_texts"]]
            rates[name] = float(word_error_rate(heard, said))
        return rates

    def written(self, log_probs_BTV: Tensor, frames_B: Tensor) -> list[str]:
        """The likeliest piece of each frame, each once, without blanks."""
        best_BT = log_probs_BTV.argmax(dim=2).cpu()
        blank = log_probs_BTV.shape[2] - 1
        rows = (row[:count].unique_consecutive() for row, count in zip(best_BT, frames_B.tolist(), strict=True))
        return [self.pieces.text(row[row != blank].tolist()) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
