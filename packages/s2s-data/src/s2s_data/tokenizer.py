"""What a text tokenizer must offer."""

from typing import Protocol

from s2s_data.errors import DataError


class TextTokenizer(Protocol):
    """Text to token ids, and the three special ids of a text channel."""

    @property
    def pad_id(self) -> int:
        """Stands in every frame that has no text."""

    @property
    def bos_id(self) -> int:
        """Stands in the frame where a turn begins."""

    @property
    def eos_id(self) -> int:
        """Stands in the frame where a turn ends."""

    def text_to_ids(self, text: str) -> list[int]:
        """Token ids of ``text``, with no special id added."""


def check_special_ids(tokenizer: TextTokenizer) -> None:
    """Raise :class:`DataError` unless PAD, BOS and EOS are three different ids.

    Were PAD and EOS one id, every silent frame would teach the end of speech.
    """
    ids = {"pad_id": tokenizer.pad_id, "bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    if any(value is None for value in ids.values()) or len(set(ids.values())) < 3:
        raise DataError(
            f"the tokenizer's special ids must be three different ids, but are {ids}: "
            "choose a token of its vocabulary for each"
        )
