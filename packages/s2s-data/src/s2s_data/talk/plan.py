"""Dialogues: questions in a row, some of which lean on what was said before.

Held out are cases of the skills that are no tables, wordings (a skill in a frame; both occur in training, not
together), and voices.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from s2s_data.demo.dialogues import CAPITALS, DAYS
from s2s_data.talk.skills import FRAMES, SKILLS, Case, Frame, Skill, phrases

HELD_OUT_SHARE = 8  # one case and one wording in so many
LARGEST_SUMMAND = 50  # of the skill "plus"
OVERLAP_FRAMES = (9, 13)  # of a cut-off answer: the user is heard before the phrase behind it has to be written
NAMES = (
    "Anna", "Peter", "Maria", "Thomas", "Laura", "David", "Emma", "Martin", "Sophie", "Daniel", "Clara", "Robert",
    "Julia", "Simon", "Nora", "Victor",
)  # fmt: skip
FOODS = ("bread", "cheese", "soup", "rice", "apples", "fish", "cake", "salad", "beans", "noodles")


@dataclass(frozen=True)
class Exchange:
    """A question and its answer.

    Attributes:
        kind: the skill, or what it is about.
        wording: the frame, or a name of its own.
        question: what the user says.
        phrases: what the agent says, each phrase for itself.
        value: what the answer has to contain, computed from what was said; None where there is nothing to know.
    """

    kind: str
    wording: str
    question: str
    phrases: tuple[str, ...]
    value: str | None

    @property
    def answer(self) -> str:
        """What the agent says."""
        return " ".join(self.phrases)

    @property
    def heard_if_cut_off(self) -> tuple[str, ...]:
        """The phrases that the agent still says when the user cuts it off, two at least."""
        return self.phrases[: max(2, len(self.phrases) // 2)]


@dataclass(frozen=True)
class Pause:
    """The user stops within a question."""

    after_words: int
    num_frames: int


@dataclass(frozen=True)
class Talk:
    """A dialogue: what is said, in which voice, and how it flows (80 ms frames).

    Attributes:
        pauses: by exchange.
        barge_ins: exchanges whose answer the user cuts off, and for how long both speak, at most.
        gaps: silence before each question.
    """

    dialogue_id: str
    voice: str
    exchanges: tuple[Exchange, ...]
    pauses: dict[int, Pause]
    barge_ins: dict[int, int]
    gaps: tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """What a split may ask: cases by skill, and (skill, frame) pairs."""

    cases: dict[str, tuple[Case, ...]]
    wordings: frozenset[tuple[str, str]]

    @cached_property
    def sums(self) -> tuple[tuple[int, int], ...]:
        """Summands that may be asked for beyond the skill: the split's own, and those too large for the skill."""
        own = {(case["a"], case["b"]) for case in self.cases["plus"]}
        pairs = ((a, b) for a in range(1, 2 * LARGEST_SUMMAND + 1) for b in range(1, 10))
        return tuple((a, b) for a, b in pairs if a > LARGEST_SUMMAND or (str(a), str(b)) in own)


def sentence(text: str) -> str:
    """The text with its first letter large."""
    return text[0].upper() + text[1:]


def ask(skill: Skill, frame: Frame, case: Case) -> Exchange:
    """The question of a skill's case in a frame, and its answer."""
    texts = {name: getattr(skill, name).format(**case) for name in ("direct", "indirect", "noun")}
    starts = frame.question.index("{direct}") if "{direct}" in frame.question else 1
    if starts == 0 or frame.question[starts - 2 : starts] == ". ":
        texts["direct"] = sentence(texts["direct"])
    first, *others = phrases(skill.answer, case)
    opening = [frame.opening] if frame.opening else []
    answer = (*opening, sentence(first), *others)
    return Exchange(skill.name, frame.name, frame.question.format(**texts), answer, case["value"])


def split_cases(seed: int) -> tuple[Held, Held, Held]:
    """What training may ask, cases that it may not in its wordings, and wordings that it may not with its cases."""
    training: dict[str, tuple[Case, ...]] = {}
    held_out: dict[str, tuple[Case, ...]] = {}
    rng = random.Random(f"{seed}-cases")
    for skill in SKILLS:
        cases = rng.sample(skill.cases, len(skill.cases))
        count = 0 if skill.is_table else len(cases) // HELD_OUT_SHARE
        training[skill.name] = tuple(cases[count:])
        if count:
            held_out[skill.name] = tuple(cases[:count])
    every = [(skill.name, frame.name) for skill in SKILLS for frame in FRAMES]
    # Skills in turn: each loses one or two of its frames, and each frame one in so many of its skills.
    unheard = {pair for i, pair in enumerate(every) if (i + i // len(FRAMES)) % HELD_OUT_SHARE == 0}
    heard = frozenset(every) - unheard
    return Held(training, heard), Held(held_out, heard), Held(training, frozenset(unheard))


def _question(held: Held, rng: random.Random) -> Exchange:
    skill = rng.choice([skill for skill in SKILLS if skill.name in held.cases])
    frames = [frame for frame in FRAMES if (skill.name, frame.name) in held.wordings]
    return ask(skill, rng.choice(frames), rng.choice(held.cases[skill.name]))


def _follow_up(before: Exchange, held: Held, rng: random.Random) -> Exchange | None:
    """A question that only what was said before makes clear."""
    if before.kind == "plus" and before.value is not None:
        total = int(before.value)
        allowed = [b for a, b in held.sums if a == total]
        if not allowed:
            return None
        more = rng.choice(allowed)
        answer: tuple[str, ...] = ("All right.", before.value, "plus", str(more), "is", f"{total + more}.")
        return Exchange("plus again", "and", f"And plus {more}?", answer, str(total + more))
    if before.kind in ("days later", "days earlier") and before.value is not None:
        if not any(case["a"] == before.value and case["n"] == "1" for case in held.cases["days later"]):
            return None
        next_day = DAYS[(DAYS.index(before.value) + 1) % 7]
        return Exchange("next day", "and", "And the day after that?", ("That is", f"{next_day}."), next_day)
    if before.kind == "capital":
        country = rng.choice([case["a"] for case in held.cases["capital"] if case["value"] != before.value])
        city = CAPITALS[country]
        answer = ("The capital of", country, "is", f"{city}.")
        return Exchange("capital again", "and", f"And of {country}?", answer, city)
    return None


def _memory(held: Held, rng: random.Random) -> tuple[Exchange, Exchange]:
    """Something to keep in mind, and a question about it for later."""
    kind = rng.choice(["name", "number", "food", "sum"])
    if kind == "name":
        name = rng.choice(NAMES)
        told = Exchange("name", "told", f"Hello, my name is {name}.", ("Nice to meet you,", f"{name}."), name)
        return told, Exchange("name", "asked", "What is my name?", ("Your name is", f"{name}."), name)
    if kind == "food":
        food = rng.choice(FOODS)
        told = Exchange("food", "told", f"I like to eat {food}.", ("That sounds good.",), None)
        return told, Exchange("food", "asked", "What do I like to eat?", ("You like to eat", f"{food}."), food)
    number, more = rng.choice(held.sums)
    told = Exchange("number", "told", f"Remember the number {number}.", ("I will remember it.",), None)
    if kind == "number":
        asked = ("Your number was", f"{number}.")
        return told, Exchange("number", "asked", "Which number did I tell you?", asked, str(number))
    total = str(number + more)
    answer = ("Your number plus", str(more), "is", f"{total}.")
    return told, Exchange("sum", "asked", f"What is my number plus {more}?", answer, total)


def _exchanges(held: Held, rng: random.Random) -> tuple[Exchange, ...]:
    """One to four exchanges; in a third of the dialogues the last leans on the first or on the one before."""
    chosen = [_question(held, rng) for _ in range(rng.choice([1, 2, 2, 3]))]
    shape = rng.random()
    if shape < 0.2:
        told, asked = _memory(held, rng)
        return (told, *chosen[:2], asked)
    if shape < 0.4:
        follow_up = _follow_up(chosen[-1], held, rng)
        if follow_up is not None:
            return (*chosen, follow_up)
    return tuple(chosen)


def _pauses(exchanges: Sequence[Exchange], share: float, rng: random.Random) -> dict[int, Pause]:
    pauses = {}
    for i, exchange in enumerate(exchanges):
        num_words = len(exchange.question.split())
        if num_words >= 4 and rng.random() < share:
            pauses[i] = Pause(rng.randint(2, num_words - 2), rng.randint(4, 12))
    return pauses


def dialogue(
    name: str, index: int, held: Held, voices: Sequence[str], *, seed: int, pause_share: float, barge_in_share: float
) -> Talk:
    """Dialogue `index` of a split: it depends on nothing but the arguments."""
    rng = random.Random(f"{seed}-{name}-{index}")
    exchanges = _exchanges(held, rng)
    # A question has to follow, what is told first has to be heard to its end, and there has to be something to cut off.
    may_be_cut = [i for i, each in enumerate(exchanges[:-1]) if each.wording != "told" and len(each.phrases) > 2]
    barge_ins = {i: rng.randint(*OVERLAP_FRAMES) for i in may_be_cut if rng.random() < barge_in_share}
    gaps = tuple(rng.choice([5, 8, 12, 25] if i == 0 else [4, 6, 9, 15, 30]) for i in range(len(exchanges)))
    pauses = _pauses(exchanges, pause_share, rng)
    return Talk(f"{name}-{index:06d}", rng.choice(list(voices)), exchanges, pauses, barge_ins, gaps)
