"""Does a model compute its numbers, or does it read them off the codes that are about to say them?

    hatch run recipe:leak recipes/talk/talk_carried.yaml talk/model

In training the codes before each text token are the right ones, and a codec's codes tell of sound to come. Here the
number that ends an answer is exchanged for another one, of another answer and of equal length, in the agent's sound
alone. A model that computes still writes the right number; one that reads it off its codes writes the other, and has
nothing to go by when it speaks for itself. Exit code 2: something is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lhotse.cut import Cut

    from s2s_data.batch import DuplexBatch
    from s2s_model.duplex import DuplexS2SModel

NUMBER = re.compile(r"(\d+)\.")  # an answer's last phrase
USER_ERROR = 2  # exit code, as argparse's own


class Number(NamedTuple):
    """The number that ends an agent's turn: the turn's place among the agent's, its words before, and its samples."""

    turn: int
    before: str
    digits: str
    start: int
    end: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Tell how many numbers are written right, and which are where the codes say another."""
    parser = argparse.ArgumentParser(
        prog="recipe:leak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="of the run; its data and its channels")
    parser.add_argument("model", type=Path, metavar="EXPORT", help="a folder that train:export wrote")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--set", default="heldout", help="of data.validation_ds.datasets (heldout)")
    parser.add_argument("--dialogues", type=int, default=64, help="how many, from the first on (64)")
    args = parser.parse_intermixed_args(arguments)
    try:
        print(json.dumps(leak(args.config, args.model, args.overrides, args.set, args.dialogues)))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def leak(config: Path, folder: Path, overrides: Sequence[str], name: str, count: int) -> dict[str, int]:
    """Count numbers, those that are right with their own codes, and with another number's: right, or that one.

    Raises:
        ValueError: there is no such set, or too few numbers of one length in it.
    """
    from s2s_data.config import validation_sets
    from s2s_data.loader import blend_of, dataset_of
    from s2s_model import DuplexS2SModel
    from s2s_train.config import load_config

    cfg = load_config(config, overrides)
    sets = validation_sets(cfg.data.validation_ds, "validation_ds")
    if name not in sets:
        raise ValueError(f"data.validation_ds.datasets has no {name!r}, only {', '.join(sets)}: choose one with --set")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DuplexS2SModel.from_pretrained(folder, device=device).eval()
    dataset = dataset_of(cfg.data, model.tokenizer, load_target_audio=True)
    cuts = list(blend_of(sets[name], f"data.validation_ds.datasets.{name}").once(with_target_audio=True))[:count]
    sounds: defaultdict[int, list[tuple[str, Tensor]]] = defaultdict(list)
    roles = dataset.roles.output_roles
    dialogues = [(dataset[[cut]], list(numbers(cut, roles, model.target_sample_rate))) for cut in cuts]
    dialogues = [(batch, found) for batch, found in dialogues if not batch["num_dropped_tokens"].any()]
    for batch, found in dialogues:
        for number in found:
            sound_S = batch["target_audio"][0, number.start : number.end]
            sounds[len(sound_S)].append((number.digits, sound_S))
    counts = {"numbers": 0, "right": 0, "swapped_right": 0, "as_the_codes_say": 0}
    rng = random.Random(0)
    for batch, found in dialogues:
        for number in found:
            if swap := other(number, sounds, rng):
                for key, value in judge(model, batch, number, *swap).items():
                    counts[key] += value
    if not counts["numbers"]:
        raise ValueError(f"no answer of {name}'s {len(cuts)} dialogues ends with a number for which another is as long")
    return counts


def numbers(cut: Cut, roles: Collection[str], rate_hz: int) -> Iterator[Number]:
    """The numbers that end turns of the agent, of `roles`, whose answer is computed, behind other words."""
    agent = sorted((turn for turn in cut.supervisions if turn.speaker in roles), key=lambda turn: turn.start)
    for i, turn in enumerate(agent):
        phrases = (turn.alignment or {}).get("word", [])
        found = NUMBER.fullmatch(phrases[-1].symbol) if phrases else None
        if found and len(phrases) > 1 and (turn.custom or {}).get("value"):
            start, end = (round(seconds * rate_hz) for seconds in (phrases[-1].start, phrases[-1].end))
            yield Number(i, " ".join(phrase.symbol for phrase in phrases[:-1]), found[1], start, end)


def other(
    number: Number, sounds: Mapping[int, Sequence[tuple[str, Tensor]]], rng: random.Random
) -> tuple[str, Tensor] | None:
    """A number with another first digit, and its sound [S] of equal length."""
    possible = [each for each in sounds[number.end - number.start] if each[0][0] != number.digits[0]]
    return rng.choice(possible) if possible else None


def judge(model: DuplexS2SModel, batch: DuplexBatch, number: Number, digits: str, sound_S: Tensor) -> dict[str, int]:
    """What the model writes for a number's first digit, with its own codes and with another's; see `leak`."""
    own, wrong = (first_digit(model.tokenizer, number.before, each) for each in (number.digits, digits))
    if own is None or wrong is None or own[0] != wrong[0]:  # the tokenizer has no digits, or splits these otherwise
        return {}
    audio_BS = batch["target_audio"].clone()
    audio_BS[0, number.start : number.end] = sound_S
    written, swapped = (
        written_at(model, batch, audio, number.turn, own[0]) for audio in (batch["target_audio"], audio_BS)
    )
    return {
        "numbers": 1, "right": int(written == own[1]), "swapped_right": int(swapped == own[1]),
        "as_the_codes_say": int(swapped == wrong[1]),
    }  # fmt: skip


def first_digit(tokenizer: Any, before: str, digits: str) -> tuple[int, int] | None:
    """Which of a turn's tokens is the first with a digit of its last number, and that token; None: there is none."""
    ids = tokenizer.text_to_ids(f"{before} {digits}.")
    known = len(tokenizer.text_to_ids(before))
    with_digits = (i for i in range(known, len(ids)) if re.search(r"\d", tokenizer.ids_to_text([ids[i]])))
    place = next(with_digits, None)
    return None if place is None else (place, ids[place])


@torch.inference_mode()
def written_at(model: DuplexS2SModel, batch: DuplexBatch, audio_BS: Tensor, turn: int, place: int) -> int:
    """The likeliest token where an agent's turn has its token number `place`, all before it being right."""
    from s2s_model.llm import text_logits

    codes_BTK, lens_B = model.audio_codec.encode(audio_BS.to(model.device), batch["target_audio_lens"].to(model.device))
    changed: Any = {key: value.to(model.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    inputs = model.prepare_inputs(changed | {"target_codes": codes_BTK, "target_code_lens": lens_B})
    model.take_spreads()
    frame = frame_of(inputs.text_labels_BT[0].tolist(), turn, place, model.tokenizer)
    return int(text_logits(model.llm, model.hidden_states(inputs)[0, frame]).argmax())


def frame_of(labels_T: Sequence[int], turn: int, place: int, tokenizer: Any) -> int:
    """Where token number `place` of a turn of the agent stands."""
    from s2s_model.channels import agent_turns

    start, end = agent_turns(list(labels_T), tokenizer.bos_id, tokenizer.eos_id)[turn]
    said = [frame for frame in range(start + 1, end) if labels_T[frame] != tokenizer.pad_id]
    return said[place]


if __name__ == "__main__":
    sys.exit(main())
