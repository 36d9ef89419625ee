"""Words in the place of tokens, where no model and so no tokenizer is at hand."""

from dataclasses import dataclass, field


@dataclass
class WordTokenizer:
    """Stands in for a tokenizer: each word that white space separates is a token.

    A real tokenizer makes at least as many tokens of a text, so text that doesn't fit here fits nowhere.
    """

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    _words: list[str] = field(default_factory=lambda: ["PAD", "BOS", "EOS"])

    def text_to_ids(self, text: str) -> list[int]:
        """One id a word, numbered as they come."""
        first = len(self._words)
        self._words += text.split()
        return list(range(first, len(self._words)))

    def word(self, token_id: int) -> str:
        """Return the word of an id that this tokenizer made, or PAD, BOS or EOS."""
        return self._words[token_id]
