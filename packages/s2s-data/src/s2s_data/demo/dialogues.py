"""What is said: questions whose answers follow from the question, and how they make up dialogues.

Held out are *pairs* of a wording and a value: each wording and each value on its own occurs in training,
so a model that has learned the parts can answer a pair that it has never heard.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CAPITALS = {
    "France": "Paris",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Russia": "Moscow",
    "Greece": "Athens",
    "Cuba": "Havana",
    "Norway": "Oslo",
    "Ireland": "Dublin",
    "Germany": "Berlin",
    "Peru": "Lima",
    "Kenya": "Nairobi",
    "Canada": "Ottawa",
}
COLORS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "the sky": "blue",
    "a lemon": "yellow",
    "chocolate": "brown",
    "a carrot": "orange",
}
PHRASES = (
    "the train leaves at noon",
    "my garden is full of flowers",
    "she sells books in the market",
    "the river runs to the sea",
    "we walked along the beach",
    "the old man plays the piano",
    "fresh bread smells very good",
    "the children sing a song",
    "winter nights are long and cold",
    "the farmer feeds his horses",
    "birds build nests in spring",
    "a small boat crossed the lake",
)
HELD_OUT_SHARE = 8  # one pair in so many


@dataclass(frozen=True)
class Exchange:
    """One question and its answer; `kind` names the domain."""

    kind: str
    question: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """A few exchanges with one user; the user cuts off the answer of the exchanges in `barge_ins`."""

    dialogue_id: str
    voice: str
    exchanges: tuple[Exchange, ...]
    barge_ins: frozenset[int] = frozenset()


@dataclass(frozen=True)
class DialoguePlan:
    """The dialogues of each split."""

    train: tuple[Dialogue, ...]
    heldout: tuple[Dialogue, ...]
    heldout_voice: tuple[Dialogue, ...]


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def _arithmetic() -> Iterator[Exchange]:
    for a in range(2, 9):
        for b in range(2, 9):
            total = NUMBERS[a + b]
            answer = f"{_capitalized(NUMBERS[a])} plus {NUMBERS[b]} is {total}."
            yield Exchange("arithmetic", f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", answer)


def _time() -> Iterator[Exchange]:
    for hour in range(1, 13):
        for step in (1, 2, 3):
            later = NUMBERS[(hour + step - 1) % 12 + 1]
            unit = "hour" if step == 1 else "hours"
            question = f"It is {NUMBERS[hour]} o'clock. What time is it in {NUMBERS[step]} {unit}?"
            yield Exchange("time", question, f"It will be {later} o'clock.")


def _days() -> Iterator[Exchange]:
    for i, day in enumerate(DAYS):
        after, before = DAYS[(i + 1) % 7], DAYS[i - 1]
        for wording in ("Which day comes {} {}?", "Tell me the day {} {}."):
            yield Exchange("days", wording.format("after", day), f"{after} comes after {day}.")
            yield Exchange("days", wording.format("before", day), f"{before} comes before {day}.")


def _facts() -> Iterator[Exchange]:
    for country, city in CAPITALS.items():
        for wording in (
            "What is the capital of {}?",
            "Tell me the capital of {}.",
            "Which city is the capital of {}?",
        ):
            yield Exchange("capitals", wording.format(country), f"The capital of {country} is {city}.")
    for thing, color in COLORS.items():
        for wording in ("What color is {}?", "Tell me the color of {}.", "Do you know the color of {}?"):
            yield Exchange("colors", wording.format(thing), f"{_capitalized(thing)} is {color}.")


def _repeat() -> Iterator[Exchange]:
    for phrase in PHRASES:
        for wording in ("Please repeat after me: {}.", "Say this after me: {}."):
            yield Exchange("repeat", wording.format(phrase), f"{_capitalized(phrase)}.")


def all_exchanges() -> list[Exchange]:
    """Every question of the domain with its answer, in a fixed order."""
    return [*_arithmetic(), *_time(), *_days(), *_facts(), *_repeat()]


def split_exchanges(seed: int) -> tuple[list[Exchange], list[Exchange]]:
    """Return (training, held-out) exchanges; one in `HELD_OUT_SHARE` of each kind is held out."""
    training: list[Exchange] = []
    heldout: list[Exchange] = []
    by_kind: dict[str, list[Exchange]] = {}
    for exchange in all_exchanges():
        by_kind.setdefault(exchange.kind, []).append(exchange)
    rng = random.Random(seed)
    for exchanges in by_kind.values():
        rng.shuffle(exchanges)
        cut = len(exchanges) // HELD_OUT_SHARE
        heldout += exchanges[:cut]
        training += exchanges[cut:]
    return training, heldout


def _dialogues(
    name: str,
    exchanges: Sequence[Exchange],
    voices: Sequence[str],
    count: int,
    barge_in_share: float,
    seed: int,
) -> Iterator[Dialogue]:
    rng = random.Random(f"{seed}-{name}")
    pool: list[Exchange] = []
    for i in range(count):
        chosen = []
        for _ in range(1 + i % 2):
            if not pool:  # a pass over all exchanges before any comes again
                pool = rng.sample(exchanges, len(exchanges))
            chosen.append(pool.pop())
        # A barge-in needs a question that follows it.
        cut_off = len(chosen) > 1 and rng.random() < barge_in_share
        yield Dialogue(f"{name}-{i:04d}", rng.choice(voices), tuple(chosen), frozenset({0} if cut_off else ()))


def plan_dialogues(
    user_voices: Sequence[str],
    heldout_voice: str,
    *,
    num_train: int,
    num_validation: int,
    barge_in_share: float = 0.15,
    seed: int = 0,
) -> DialoguePlan:
    """Plan the dialogues of all splits; equal arguments give equal plans."""
    training, heldout = split_exchanges(seed)
    return DialoguePlan(
        train=tuple(_dialogues("train", training, user_voices, num_train, barge_in_share, seed)),
        heldout=tuple(_dialogues("heldout", heldout, user_voices, num_validation, 0.0, seed)),
        heldout_voice=tuple(_dialogues("voice", training, [heldout_voice], num_validation, 0.0, seed)),
    )
