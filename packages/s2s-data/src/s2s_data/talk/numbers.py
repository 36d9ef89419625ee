"""Numbers as they are spoken."""

import re

SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def spoken(number: int) -> str:
    """The words of 0 to 999, such as "two hundred forty-one"."""
    assert 0 <= number < 1000, number
    hundreds, rest = divmod(number, 100)
    words = [SMALL[hundreds], "hundred"] if hundreds else []
    if rest or not hundreds:
        tens, ones = divmod(rest, 10)
        words.append(SMALL[rest] if rest < 20 else TENS[tens] + (f"-{SMALL[ones]}" if ones else ""))
    return " ".join(words)


def aloud(text: str) -> str:
    """The text with its numbers in words: what a voice is asked to say."""
    return re.sub(r"\b\d{1,3}\b", lambda number: spoken(int(number[0])), text)


def in_parts(text: str) -> list[str]:
    """As `aloud`, hundreds and what follows them in parts: each is said for itself, and sounds as in other numbers."""
    return re.split(r"(?<=hundred) ", aloud(text))
