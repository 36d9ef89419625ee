"""Text as metrics see it."""

from functools import cache
from typing import Any


def normalize(text: str) -> str:
    """Return English text as Whisper's normaliser leaves it: lower case, no punctuation, numbers as digits.

    Without it "twelve" against "12" costs 17 points of WER. It joins a list of single numbers ("nine, ten" becomes
    "910") and drops "um" and "uh", the same on both sides of a comparison.
    """
    words = _english()(text).split()
    # it leaves "." of "...", which Whisper writes when it hears no word
    return " ".join(word for word in words if any(letter.isalnum() for letter in word))


@cache
def _english() -> Any:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
