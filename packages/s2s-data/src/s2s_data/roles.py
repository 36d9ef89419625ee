"""Whose turn is whose: a supervision's ``speaker`` is looked up in the configured roles."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lhotse import SupervisionSegment
from lhotse.cut import Cut

from s2s_data.audio import place_of
from s2s_data.batch import TimedWords, Turn
from s2s_data.errors import DataError, UnreadableCutError

USER = "user"
AGENT = "agent"
VALUE = "value"  # the custom field of an agent's supervision that tells what its answer must contain
WORD = "word"  # the kind of a supervision's alignment whose items are words

# Some corpora keep word times in the text ("<|3|> how <|5|>"); NeMo strips them, and so do we.
_TIMESTAMP = re.compile(r"<\|\d+\|>")
_SPACES = re.compile(r"\s+")


@dataclass(frozen=True)
class Roles:
    """The speaker names of the user's and of the agent's turns."""

    input_roles: frozenset[str]
    output_roles: frozenset[str]

    @classmethod
    def of(cls, input_roles: Collection[str], output_roles: Collection[str]) -> "Roles":
        """Check the names and keep them.

        Raises :class:`DataError` for an empty list and for a name that is in both.
        """
        roles = cls(frozenset(input_roles), frozenset(output_roles))
        for key, names in (("input_roles", roles.input_roles), ("output_roles", roles.output_roles)):
            if not names:
                raise DataError(f"data.{key} is empty: name the speakers of the supervisions, as in [user]")
        if both := sorted(roles.input_roles & roles.output_roles):
            raise DataError(f"{both} is in data.input_roles and in data.output_roles: a speaker has one role")
        return roles

    def turns(self, cut: Cut) -> list[Turn]:
        """Return the turns of ``cut`` by their start, with clean text; other speakers are left out.

        The times of their words are those of the alignment ``word``, whose items without a symbol are silences.

        Raises :class:`UnreadableCutError` for an agent's custom field ``value`` that isn't a text.
        """
        turns = []
        for supervision in cut.supervisions:
            if supervision.speaker in self.output_roles:
                role = AGENT
            elif supervision.speaker in self.input_roles:
                role = USER
            else:
                continue
            text = clean_text(supervision.text or "")
            value = _value(supervision, cut) if role == AGENT else None
            words = _words(supervision, cut) if supervision.alignment else ()
            turns.append(Turn(role, float(supervision.start), float(supervision.duration), text, value, words))
        return sorted(turns, key=lambda turn: turn.start_s)


def clean_text(text: str) -> str:
    """Strip ``<|12|>`` timestamps and superfluous white space."""
    return _SPACES.sub(" ", _TIMESTAMP.sub("", text)).strip()


def _words(supervision: SupervisionSegment, cut: Cut) -> tuple[TimedWords, ...]:
    """Return the words from the turn's start; lhotse times them from the recording's start, not from the cut's."""
    begun_s = float(cut.start + supervision.start)
    items = (supervision.alignment or {}).get(WORD, ())
    words = (TimedWords(clean_text(item.symbol), item.start - begun_s, float(item.duration)) for item in items)
    return tuple(word for word in words if word.text)


def _value(supervision: SupervisionSegment, cut: Cut) -> str | None:
    """Return what the answer must contain, None where the supervision doesn't tell."""
    value = (supervision.custom or {}).get(VALUE)
    if value is None:
        return None
    if not isinstance(value, str) or not clean_text(value):
        raise UnreadableCutError(
            f"{place_of(cut)}: the {VALUE} of its supervision {supervision.id} is {value!r:.100}: write the text that "
            'the answer must contain, as in "twelve", or leave it out'
        )
    return clean_text(value)


def check_roles(cuts: Iterable[Cut], roles: Roles, where: str) -> None:
    """Read cuts until each side of the dialogue has a turn.

    Raises :class:`DataError` if a side has none in all of ``cuts``: it names the speakers that were found.
    """
    found: Counter[str] = Counter()
    for cut in cuts:
        found.update(str(supervision.speaker) for supervision in cut.supervisions)
        if found.keys() & roles.input_roles and found.keys() & roles.output_roles:
            return
    speakers = ", ".join(f"{name!r} ({count} turns)" for name, count in found.most_common(8)) or "no turn at all"
    for key, names in (("input_roles", roles.input_roles), ("output_roles", roles.output_roles)):
        if not found.keys() & names:
            raise DataError(
                f"data.{key}={sorted(names)} matches no supervision of {where}; its speakers are {speakers}: "
                f"put the right ones into data.{key}"
            )
