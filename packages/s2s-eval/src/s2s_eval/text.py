"""Text as metrics see it, language by language."""

from collections.abc import Callable
from functools import cache

_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it
ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so
sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh
"""
# Whisper's languages: its codes are ISO 639-1 where there is one, but "jw" (Javanese), "haw" and "yue"
LANGUAGES = tuple(_CODES.split())
# written without spaces between words (Whisper's own list): a letter takes the place of a word
UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
# sacrebleu's tokenizer where 13a isn't right. Its own choice for Japanese and Korean is MeCab, two packages with
# dictionaries of their own versions: letters need nothing, and the signature names them.
TOKENIZERS = {"zh": "zh", "yue": "zh"} | dict.fromkeys(["ja", "ko", "th", "lo", "my"], "char")
DEFAULT_TOKENIZER = "13a"


def normalize(text: str, language: str = "en") -> str:
    """Return the text as Whisper's normaliser for its language leaves it: lower case, no punctuation.

    English: numbers become digits too. Without it "twelve" against "12" costs 17 points of WER. It joins a list of
    single numbers ("nine, ten" becomes "910") and drops "um" and "uh", the same on both sides of a comparison.

    Other languages: what is in brackets goes, symbols and punctuation become spaces; numbers stay as they are written.
    Combining marks stay, unlike in OpenAI's original, which loses the vowels of Hindi and Thai. In languages written
    without spaces (:data:`UNSPACED`) each letter becomes a word. Raises ValueError for an unknown language.
    """
    words = _normalizer(language)(text).split()
    # "..." is left of an utterance in which Whisper hears no word
    return " ".join(word for word in words if any(letter.isalnum() for letter in word))


def is_spaced(language: str) -> bool:
    """Return whether the language is written with spaces between words."""
    return language not in UNSPACED


def bleu_tokenizer(language: str) -> str:
    """Return the name of sacrebleu's tokenizer for the language. Raises ValueError for an unknown one."""
    check_language(language)
    return TOKENIZERS.get(language, DEFAULT_TOKENIZER)


def check_language(language: str) -> None:
    """Raise ValueError for a code that isn't one of Whisper's languages."""
    if language not in LANGUAGES:
        raise ValueError(f"scoring.language={language!r} isn't known: write one of {', '.join(LANGUAGES)}")


@cache
def _normalizer(language: str) -> Callable[[str], str]:
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    check_language(language)
    normalizer: Callable[[str], str]
    if language == "en":
        normalizer = EnglishTextNormalizer()
    else:
        normalizer = BasicTextNormalizer(split_letters=not is_spaced(language), preserve_marks=True)
    return normalizer
