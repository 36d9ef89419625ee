"""The LLM's tokenizer with the three control tokens that the text channel needs."""

from collections.abc import Sequence
from typing import Any


class DuplexTokenizer:
    """A Hugging Face tokenizer; `pad_id`, `bos_id` and `eos_id` are three different ids.

    Raises:
        ValueError: a control token is missing, unknown or stands for two roles; the message names the
            config key that settles it.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        pad_token: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.pad_id = self._control_id("pad", pad_token)
        self.bos_id = self._control_id("bos", bos_token)
        self.eos_id = self._control_id("eos", eos_token)
        ids = {"pad": self.pad_id, "bos": self.bos_id, "eos": self.eos_id}
        for first, second in (("pad", "eos"), ("pad", "bos"), ("bos", "eos")):
            if ids[first] == ids[second]:
                raise ValueError(
                    f"the tokenizer uses {tokenizer.convert_ids_to_tokens(ids[first])!r} as {first} and as {second}, "
                    f"but silence, begin and end of a turn must differ: set model.text_{first}_token to another token"
                )

    def _control_id(self, role: str, configured: str | None) -> int:
        token = configured if configured is not None else getattr(self._tokenizer, f"{role}_token", None)
        if token is None:
            raise ValueError(
                f"the tokenizer of the LLM names no {role} token: set model.text_{role}_token to a token of its "
                "vocabulary that doesn't occur in text"
            )
        vocabulary = self._tokenizer.get_vocab()
        if token not in vocabulary:
            raise ValueError(f"model.text_{role}_token: {token!r} isn't in the tokenizer's vocabulary")
        return int(vocabulary[token])

    def text_to_ids(self, text: str) -> list[int]:
        """Token ids of `text`, no control tokens added."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens left out."""
        control = {self.pad_id, self.bos_id, self.eos_id}
        text: str = self._tokenizer.decode([i for i in ids if i not in control], skip_special_tokens=True)
        return text.strip()


def load_tokenizer(name_or_path: str, **control_tokens: str | None) -> DuplexTokenizer:
    """Load a tokenizer by Hugging Face name or from a folder.

    Raises:
        ValueError: there is none, or its control tokens need settling.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        first_line = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(
            f"no tokenizer at {name_or_path!r}, which model.tokenizer_path or model.pretrained_llm names: {first_line}"
        ) from error
    return DuplexTokenizer(tokenizer, **control_tokens)
