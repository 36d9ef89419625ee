"""From the tokens of a text channel to turns and text, at once or as they come.

Shapes: `T` frames (80 ms).
"""

from s2s_model.channels import agent_turns
from s2s_model.tokenizer import DuplexTokenizer


def text_turns(
    tokens_T: list[int], tokenizer: DuplexTokenizer, frame_length_s: float
) -> list[tuple[float, float, str]]:
    """The turns that predicted tokens [T] make, as (start_s, end_s, text)."""
    return [
        (
            round((start + 1) * frame_length_s, 3),  # what frame t predicts stands at frame t + 1
            round((end + 1) * frame_length_s, 3),
            tokenizer.ids_to_text(tokens_T[start:end]),
        )
        for start, end in agent_turns(tokens_T, tokenizer.bos_id, tokenizer.eos_id)
    ]


class TextWriter:
    """Writes a text channel token by token; the pieces together are the turns' texts, joined by a space."""

    def __init__(self, tokenizer: DuplexTokenizer) -> None:
        self._tokenizer = tokenizer
        self._turn: list[int] | None = None  # tokens of the turn that is open
        self._written = ""  # of it
        self._is_empty = True  # nothing written in any turn

    @property
    def in_turn(self) -> bool:
        """Whether a turn is open."""
        return self._turn is not None

    def write(self, token: int) -> str:
        """Take the next token; return the text that it adds, if any."""
        if token == self._tokenizer.bos_id:
            piece = self.close()
            self._turn = []
            return piece
        if token == self._tokenizer.eos_id:
            return self.close()
        if self._turn is None or token == self._tokenizer.pad_id:
            return ""
        self._turn.append(token)
        text = self._tokenizer.ids_to_text(self._turn)
        if text.endswith("\ufffd"):
            return ""  # a character whose last byte is still to come
        return self._add(text)

    def close(self) -> str:
        """End the turn that is open; return what wasn't written of it yet."""
        if self._turn is None:
            return ""
        text = self._tokenizer.ids_to_text(self._turn)
        piece = self._add(text)
        self._turn, self._written = None, ""
        return piece

    def _add(self, text: str) -> str:
        piece = text[len(self._written) :]
        if not piece:
            return ""
        space = "" if self._written or self._is_empty else " "
        self._written, self._is_empty = text, False
        return space + piece
