"""The LLM's tokenizer with the three control tokens that the text channel needs."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from s2s_model.llm import KEY, pretrained_source
from s2s_model.names import why_not_loaded

log = logging.getLogger(__name__)
ROLES = ("pad", "bos", "eos")
NUM_SUGGESTIONS = 3
# What makers of LLMs call the tokens that they leave to their users.
SPARE_NAMES = ("pad", "reserved", "unused", "placeholder", "extra", "control")


class DuplexTokenizer:
    """A Hugging Face tokenizer; `pad_id`, `bos_id` and `eos_id` are three different ids.

    `pad_token`, `bos_token` and `eos_token` name them. Given as arguments they replace the tokenizer's own.

    Raises:
        ValueError: control tokens are missing, unknown or stand for two roles; the message names the config key
            that settles each, and tokens of the vocabulary that would do.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        pad_token: str | None = None,
        bos_token: str | None = None,
        eos_token: str | None = None,
    ) -> None:
        configured = {"pad": pad_token, "bos": bos_token, "eos": eos_token}
        own = {role: getattr(tokenizer, f"{role}_token", None) for role in ROLES}
        tokens = {role: own[role] if configured[role] is None else configured[role] for role in ROLES}
        _check_control_tokens(tokenizer, tokens, configured)
        self._tokenizer = tokenizer
        self.pad_token, self.bos_token, self.eos_token = (str(tokens[role]) for role in ROLES)
        vocabulary = tokenizer.get_vocab()
        self.pad_id, self.bos_id, self.eos_id = (int(vocabulary[tokens[role]]) for role in ROLES)
        self._control_ids = {self.pad_id, self.bos_id, self.eos_id}
        self._warned = False

    def text_to_ids(self, text: str) -> list[int]:
        """Token ids of `text`, no control tokens among them: where the text spells one out, it is left out.

        What was said has no `</s>` in it; kept, it would end the turn. The first such text is reported.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        spoken = [i for i in ids if i not in self._control_ids]
        if len(spoken) < len(ids) and not self._warned:
            self._warned = True
            log.warning("the text %r spells out a control token of the LLM; such tokens are left out", text)
        return spoken

    def ids_to_text(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control and other special tokens left out, spaces as they were spoken."""
        spoken = [i for i in ids if i not in self._control_ids]
        text: str = self._tokenizer.decode(spoken, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip()

    def check_fits(self, num_embeddings: int) -> None:
        """Raise ValueError if the text or a control token has ids that an LLM of `num_embeddings` rows doesn't know."""
        largest = max(*self._control_ids, self._tokenizer.vocab_size - 1)  # tokens added for images may lie beyond
        if largest >= num_embeddings:
            raise ValueError(
                f"the tokenizer's ids go up to {largest}, but model.pretrained_llm embeds {num_embeddings} tokens: "
                "model.tokenizer_path or a model.text_*_token belongs to another LLM"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the Hugging Face tokenizer as it was loaded; the control tokens stay in the config's keys."""
        self._tokenizer.save_pretrained(str(folder))


def load_tokenizer(name_or_path: str, *, key: str = KEY, **control_tokens: str | None) -> DuplexTokenizer:
    """Load a tokenizer by Hugging Face name, from a folder or from a `.gguf` file (see `load_llm`).

    Args:
        name_or_path: where it is.
        key: the config key that named it, for errors.
        control_tokens: see `DuplexTokenizer`.

    Raises:
        FileNotFoundError: a path that doesn't exist.
        ValueError: there is none, or its control tokens need settling.
    """
    from transformers import AutoTokenizer

    path, where = pretrained_source(name_or_path, key)
    try:
        tokenizer = _from_gguf(path, where["gguf_file"]) if where else AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"no tokenizer at {name_or_path!r}, which {key} names: {why_not_loaded(path, key, error)}"
        ) from error
    return DuplexTokenizer(tokenizer, **control_tokens)


def spare_tokens(tokenizer: Any, role: str, taken: Iterable[str | None] = ()) -> list[str]:
    """Added tokens without a role, not `taken` and not in the chat template; the likeliest for `role` first."""
    used = {*taken, *(token for token in tokenizer.special_tokens_map.values() if isinstance(token, str))}
    template = str(getattr(tokenizer, "chat_template", None) or "")
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]

    def rank(token: str) -> int:
        if role in token.lower():
            return 0
        return 1 if any(name in token.lower() for name in SPARE_NAMES) else 2

    return sorted((t for t in added if t not in used and t not in template), key=rank)[:NUM_SUGGESTIONS]


def _from_gguf(path: str, gguf_file: str) -> Any:
    """The tokenizer of a GGUF file, with the PAD, BOS and EOS that the file names."""
    from gguf import GGUFReader
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    file = Path(str(cached_file(path, gguf_file))).absolute()
    with TemporaryDirectory() as alone:  # transformers 5.23 prefers a tokenizer.json that lies beside the file
        (Path(alone) / file.name).symlink_to(file)
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=file.name)
    fields = GGUFReader(file).fields
    for role, name in zip(ROLES, ("padding", "bos", "eos"), strict=True):  # transformers 5.17 mixes them up
        field = fields.get(f"tokenizer.ggml.{name}_token_id")
        token = None if field is None else tokenizer.convert_ids_to_tokens(int(field.parts[-1][0]))
        setattr(tokenizer, f"{role}_token", token)
    return tokenizer


def _check_control_tokens(tokenizer: Any, tokens: dict[str, str | None], configured: dict[str, str | None]) -> None:
    """Refuse roles without a token, tokens outside the vocabulary, and one token for two roles: all in one error."""
    problems = _missing(tokenizer, tokens)
    for first, second in (("pad", "eos"), ("pad", "bos"), ("bos", "eos")):
        if tokens[first] != tokens[second] or first in problems or second in problems:
            continue
        change = second if configured[second] is None and configured[first] is not None else first
        problems[change] = (
            f"the tokenizer uses {tokens[first]!r} as {first} and as {second}, but silence, begin and end of a turn "
            f"must differ: set model.text_{change}_token to"
        )
    taken = [*tokens.values()]
    words = []
    for role, problem in problems.items():
        spare = spare_tokens(tokenizer, role, taken)
        words.append(f"{problem} {_spare_words(spare)}")
        taken += spare[:1]  # so that the first suggestions are different tokens
    if words:
        raise ValueError("; ".join(words))


def _missing(tokenizer: Any, tokens: dict[str, str | None]) -> dict[str, str]:
    """By role: that it has no token of the vocabulary. A suggestion is to follow."""
    vocabulary = tokenizer.get_vocab()
    problems: dict[str, str] = {}
    for role, token in tokens.items():
        key = f"model.text_{role}_token"
        if token is None:
            problems[role] = f"the tokenizer of the LLM names no {role} token: set {key} to"
        elif token not in vocabulary:
            problems[role] = f"{key}: {token!r} isn't one token of the tokenizer's vocabulary: use"
    return problems


def _spare_words(spare: list[str]) -> str:
    if not spare:
        return "a token of its vocabulary that doesn't occur in text (it has no unused special tokens)"
    return f"a token of its vocabulary that doesn't occur in text, for example {' or '.join(spare)}"
