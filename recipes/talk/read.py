"""Teach the LLM's adapters what the agent answers, from text alone, before a run that hears and speaks.

    hatch run recipe:read recipes/talk/talk_carried.yaml talk/reader-8192 --minutes 4

In sound two answers take 15 seconds. Here the LLM reads such dialogues as the text channels of a run, on the frame
grid but at a faster pace, with nothing in the other channels: many more answers in the same time. Cases and wordings
that the corpus holds out stay unread; how many of their answers are right is told in the end. OUT is a peft adapter, in
which `model.pretrained_lora` lets a run of the config start. Exit code 2: something is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from s2s_data.batch import TimedWords, Turn
from s2s_data.talk import TalkConfig, split_cases
from s2s_data.talk.corpus import text_talk, text_turns_of
from s2s_data.text_channel import FrameGrid, build_text_channel
from s2s_model.channels import agent_turns

if TYPE_CHECKING:
    from s2s_data.talk.plan import Held, Talk
    from s2s_data.talk.text import TextTurn
    from s2s_data.tokenizer import TextTokenizer
    from s2s_model.channels import DuplexInputs
    from s2s_model.network import DuplexNetwork
    from s2s_train.config import AppConfig

PEAK_RATE, WARM_UP_STEPS = 1e-3, 50
POOL = 4  # batches whose dialogues are sorted by length
COMPILING = 2  # steps that compile on a GPU, for the first size and for any
SCORED_AT_ONCE = 64  # dialogues
SILENCE_WEIGHT = 0.2  # of frames without a token, all together, beside those with one
RATE_HZ = 16000  # of the grid; any
LOG_EVERY_S = 10
USER_ERROR = 2  # exit code, as argparse's own


def main(arguments: Sequence[str] | None = None) -> int:
    """Train for `--minutes`, tell how many held-out answers are right, and write the adapter."""
    args = parse(arguments)
    try:
        from s2s_train.config import load_config

        if args.out.exists():
            raise FileExistsError(f"{args.out} is there already: give another name, or move it away")
        cfg = load_config(args.config, args.overrides)
        reader = Reader(cfg, args.processes, args.corpus_seed)
        reader.train(args.minutes * 60, args.batch)
        for name, held in zip(("heldout", "heldout_wording"), split_cases(args.corpus_seed)[1:], strict=True):
            right, asked = reader.answers(name, held, args.scored)
            share = round(100 * sum(right.values()) / sum(asked.values()), 1)
            by_skill = {kind: f"{right[kind]}/{count}" for kind, count in sorted(asked.items())}
            print(json.dumps({"set": name, "right_percent": share, "right": by_skill}), flush=True)
        reader.save(args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(
        prog="recipe:read", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="of the run that will start there; with model.lora")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config, as fit takes them")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=256, help="dialogues a step (256)")
    parser.add_argument("--scored", type=int, default=256, help="dialogues of each held-out set that are scored (256)")
    parser.add_argument("--processes", type=int, default=4, help="that write dialogues (4)")
    parser.add_argument(
        "--corpus-seed", type=int, default=TalkConfig.seed, help="by which the corpus draws what it holds out (0)"
    )
    args = parser.parse_intermixed_args(arguments)
    for name in ("minutes", "batch", "scored"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name} is {getattr(args, name)}: give more than 0")
    return args


class Channels(NamedTuple):
    """The text channels of dialogues: tokens [B, T], padded with the tokenizer's pad_id, and frames [B]."""

    agent_BT: Tensor
    user_BT: Tensor
    lens_B: Tensor
    talks: list[Talk]


class Remembering:
    """A tokenizer that takes a text apart once: the same words come again and again."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.pad_id, self.bos_id, self.eos_id = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def text_to_ids(self, text: str) -> list[int]:
        """Token ids of `text`, as the tokenizer's."""
        if text not in self._known:
            self._known[text] = self._tokenizer.text_to_ids(text)
        return self._known[text]


class Dialogues(IterableDataset[Channels]):
    """Batches of dialogues of a split, each dialogue once, without an end.

    Args:
        name, held, corpus: of the split, and how its dialogues flow.
        tokenizer: of the text channels.
        batch: dialogues in one.
        spread_agent, lead_agent, spread_user: as the config's data has them.
    """

    def __init__(
        self,
        name: str,
        held: Held,
        corpus: TalkConfig,
        tokenizer: TextTokenizer,
        batch: int,
        *,
        spread_agent: bool = True,
        lead_agent: int = 0,
        spread_user: bool = True,
    ) -> None:
        self.name, self.held, self.corpus, self.batch = name, held, corpus, batch
        self.tokenizer = Remembering(tokenizer)
        self.spread_agent, self.lead_agent, self.spread_user = spread_agent, lead_agent, spread_user

    def __iter__(self) -> Iterator[Channels]:
        """Each worker makes every so many-th pool of dialogues, and batches of like lengths of it."""
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        size = POOL * self.batch
        for index in itertools.count(first, step):
            pool = [self.channels(number) for number in range(index * size, (index + 1) * size)]
            pool.sort(key=lambda row: len(row[0]))
            starts = list(range(0, size, self.batch))
            random.Random(index).shuffle(starts)
            for start in starts:
                yield collate(pool[start : start + self.batch], self.tokenizer.pad_id)

    def channels(self, number: int) -> tuple[Tensor, Tensor, Talk]:
        """The agent's and the user's text [T] of a dialogue."""
        talk = text_talk(self.name, number, self.held, self.corpus)
        turns = text_turns_of(talk, self.corpus, lambda span: len(self.tokenizer.text_to_ids(f" {span}")))
        num_frames = max(turn.end for turn in turns) + self.corpus.tail_frames
        grid = FrameGrid(num_frames, 1 / RATE_HZ, RATE_HZ)
        spoken_by = {role: [_timed(turn) for turn in turns if turn.role == role] for role in ("agent", "user")}
        agent = build_text_channel(
            spoken_by["agent"], grid, self.tokenizer, spread=self.spread_agent, lead=self.lead_agent
        )
        user = build_text_channel(spoken_by["user"], grid, self.tokenizer, spread=self.spread_user)
        return agent.tokens_T, user.tokens_T, talk


def _timed(turn: TextTurn) -> Turn:
    """With times, a frame being 1 / `RATE_HZ` seconds."""
    words = tuple(TimedWords(span, first / RATE_HZ, count / RATE_HZ) for span, first, count in turn.times)
    return Turn(turn.role, turn.start / RATE_HZ, turn.ends[-1] / RATE_HZ, turn.text, words=words)


def collate(rows: Sequence[tuple[Tensor, Tensor, Talk]], pad_id: int) -> Channels:
    """Rows of one batch, padded."""
    agent = pad_sequence([row[0] for row in rows], batch_first=True, padding_value=pad_id)
    user = pad_sequence([row[1] for row in rows], batch_first=True, padding_value=pad_id)
    return Channels(agent, user, torch.tensor([len(row[0]) for row in rows]), [row[2] for row in rows])


class Reader:
    """The config's network, of which the LLM's adapters are trained."""

    def __init__(self, cfg: AppConfig, processes: int, corpus_seed: int = TalkConfig.seed) -> None:
        from s2s_data.loader import dataset_of
        from s2s_model.llm import llm_blocks
        from s2s_model.lora import TRAINED
        from s2s_model.network import DuplexNetwork
        from s2s_parallel.compiled import compile_in_training

        if cfg.model.lora is None:
            raise ValueError("model.lora is null: reading trains adapters; a run without them trains the LLM itself")
        if not cfg.model.predict_user_text:
            raise ValueError("model.predict_user_text is false: then there is no question to be read")
        torch.manual_seed(cfg.seed or 0)
        self.cfg, self.processes, self.corpus = cfg, processes, TalkConfig(seed=corpus_seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        if cfg.model.perception.get("encoder"):
            cfg.model.pretrained_asr = None  # nothing is heard
        cfg.model.pretrained_lora = None
        cfg.model.start_from_text = True  # whatever stands in the other channels is nothing to the LLM
        network = DuplexNetwork(cfg.model, cfg.data.frame_length, llm_dtype=dtype)
        dataset_of(cfg.data, network.tokenizer)  # refuses what a run of the config would refuse
        self.network: DuplexNetwork = network.to(self.device, dtype)
        if self.device.type == "cuda" and cfg.parallel.compile:  # a CPU would compile each length anew
            for layer in llm_blocks(self.network.llm):
                compile_in_training(layer)
        self.weights = [weight for name, weight in self.network.llm.named_parameters() if re.match(TRAINED, name)]
        self.exact = [weight.detach().float().clone() for weight in self.weights]

    def train(self, seconds: float, batch: int) -> None:
        """Take steps for so long, each on so many dialogues, and tell how they go.

        The adapters are learned in float32, and computed with in the LLM's dtype.
        """
        fused = self.device.type == "cuda"
        optimizer = torch.optim.AdamW(self.exact, PEAK_RATE, (0.9, 0.98), weight_decay=0.01, fused=fused)
        training, _, _ = split_cases(self.corpus.seed)
        batches = DataLoader(self._dialogues("read", training, batch), batch_size=None, num_workers=self.processes)
        began = told = 0.0
        losses: list[Tensor] = []
        for step, channels in enumerate(batches):
            now = time.monotonic()
            if step <= COMPILING:
                began = now  # until then processes start, and layers are compiled
            share = (now - began) / seconds
            if share >= 1 and step:
                break
            for group in optimizer.param_groups:
                warm = min(1.0, (step + 1) / WARM_UP_STEPS)
                group["lr"] = PEAK_RATE * warm * (0.5 + 0.5 * math.cos(math.pi * min(share, 1.0)))
            losses.append(self.loss(channels))
            losses[-1].backward()
            losses[-1] = losses[-1].detach()
            for weight, own in zip(self.exact, self.weights, strict=True):
                assert own.grad is not None
                weight.grad, own.grad = own.grad.float(), None
            torch.nn.utils.clip_grad_norm_(self.exact, 1.0)
            optimizer.step()
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.exact)
            if now - told > LOG_EVERY_S or not step:
                loss = torch.stack(losses).mean().item()  # waits for the GPU
                line = {"step": step + 1, "share": round(share, 4), "loss": round(loss, 4)}
                print(json.dumps(line), flush=True)
                told, losses = now, []

    def save(self, folder: Path) -> None:
        """Write the adapters, in float32."""
        from s2s_model.lora import save_lora

        for weight, exact in zip(self.weights, self.exact, strict=True):
            weight.data = exact
        save_lora(self.network.llm, folder)

    def _dialogues(self, name: str, held: Held, batch: int) -> Dialogues:
        data = self.cfg.data
        return Dialogues(
            name, held, self.corpus, self.network.tokenizer, batch, spread_agent=data.spread_target_text,
            lead_agent=data.lead_target_text_by, spread_user=data.spread_source_text,
        )  # fmt: skip

    def loss(self, channels: Channels) -> Tensor:
        """In nats a token; frames without one count `SILENCE_WEIGHT` of all."""
        logits_NV, labels_N = self._predicted(self._inputs(channels))
        losses_N = torch.nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        silent_N = labels_N == self.network.tokenizer.pad_id
        said, silence = (
            (losses_N * of_N).sum() / of_N.sum().clamp(min=1) for of_N in (~silent_N, silent_N)
        )  # fmt: skip
        return (1 - SILENCE_WEIGHT) * said + SILENCE_WEIGHT * silence

    def _inputs(self, channels: Channels) -> DuplexInputs:
        """The channels moved by the config's delays."""
        from s2s_model.llm import hidden_size

        agent_BT, user_BT, lens_B = (part.to(self.device, non_blocking=True) for part in channels[:3])
        B, T = agent_BT.shape
        nothing = torch.zeros(B, T, hidden_size(self.network.llm), device=self.device, dtype=self.network.llm.dtype)
        codes_BTK = torch.zeros(B, T, self.network.audio_codec.num_codebooks, dtype=torch.int64, device=self.device)
        inputs, _ = self.network.align(nothing, agent_BT, codes_BTK, (lens_B, lens_B, lens_B), user_BT)
        return inputs

    def _predicted(self, inputs: DuplexInputs) -> tuple[Tensor, Tensor]:
        """Logits [N, V] of the agent's text in valid frames, and what it is."""
        from s2s_model.llm import text_logits

        hidden_BTH = self.network.hidden_states(inputs)
        return text_logits(self.network.llm, hidden_BTH[inputs.valid_BT]), inputs.text_labels_BT[inputs.valid_BT]

    @torch.no_grad()
    def answers(self, name: str, held: Held, count: int) -> tuple[Counter[str], Counter[str]]:
        """By skill: how many answers of a split's first dialogues are right, and how many were asked for.

        Each frame's likeliest token is compared, given the right ones before it: a token has to be the answer's, and
        where there is none it may be none, or the answer's next one, early.
        """
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        self.network.eval()
        dialogues = self._dialogues(name, held, SCORED_AT_ONCE)
        pad_id, bos_id, eos_id = (getattr(self.network.tokenizer, f"{role}_id") for role in ("pad", "bos", "eos"))
        for first in range(0, count, SCORED_AT_ONCE):
            numbers = range(first, min(first + SCORED_AT_ONCE, count))
            channels = collate([dialogues.channels(number) for number in numbers], pad_id)
            inputs = self._inputs(channels)
            logits_NV, _ = self._predicted(inputs)
            written_BT = torch.full_like(inputs.text_labels_BT, pad_id)
            written_BT[inputs.valid_BT] = logits_NV.argmax(1)
            for talk, written_T, labels_T in zip(
                channels.talks, written_BT.tolist(), inputs.text_labels_BT.tolist(), strict=True
            ):
                for i, (start, end) in enumerate(agent_turns(labels_T, bos_id, eos_id)):
                    if talk.exchanges[i].value is not None:
                        asked[talk.exchanges[i].kind] += 1
                        said = slice(start + 1, end)
                        right[talk.exchanges[i].kind] += is_right(written_T[said], labels_T[said], pad_id)
        self.network.train()
        return right, asked


def is_right(written_T: Sequence[int], labels_T: Sequence[int], pad_id: int) -> bool:
    """Whether what is written in each frame is the text's token, or in its place none or the next one."""
    following = pad_id
    for written, label in zip(reversed(written_T), reversed(labels_T), strict=True):
        if label != pad_id:
            following = label
        if written != label and not (label == pad_id and written == following):
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
