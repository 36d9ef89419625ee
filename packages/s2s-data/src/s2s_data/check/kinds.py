"""The kinds of problems that ``s2s-data check`` knows, and what to do about each."""

from typing import NamedTuple

ERROR = "error"  # training would suffer
WARNING = "warning"  # have a look


class Kind(NamedTuple):
    """A kind of problem."""

    name: str
    severity: str  # ERROR or WARNING
    advice: str


_ALL = (
    Kind("broken-shard", ERROR, "write the shard anew, or take it out of the folder"),
    Kind("unloadable", ERROR, "mend the cut or write its shard anew: training skips it, and stops if many are so"),
    Kind("no-cuts", ERROR, "look whether the export was finished"),
    Kind("duplicate-id", ERROR, "give each cut an id of its own"),
    Kind("role-unmatched", ERROR, "put the right speaker names into --input-roles and --output-roles"),
    Kind("unknown-speaker", ERROR, "put the speaker into a role, or take its turns and its voice out"),
    Kind("no-agent-turn", ERROR, "transcribe the agent, or take the cut out"),
    Kind("turn-outside", ERROR, "shorten the turn, or drop it"),
    Kind("turns-overlap", ERROR, "join the turns, or end the first where the second starts"),
    Kind("empty-text", ERROR, "transcribe the turn, or drop it"),
    Kind("text-too-long", ERROR, "look at the turn's times: so many words can't be said in them"),
    Kind("no-source", ERROR, "make it a MonoCut whose recording is the user's audio, or take the cut out"),
    Kind("no-target", ERROR, "attach the agent's audio as target_audio, or take the cut out"),
    Kind("durations-differ", ERROR, "pad the shorter channel with silence: both start at 0 and end together"),
    Kind("unreadable-audio", ERROR, "export the audio anew, or take the cut out"),
    Kind("non-finite", ERROR, "export the audio anew: NaN and infinity spread through the whole model"),
    Kind("silent-turn", ERROR, "look for swapped channels, shifted times, or a missing track"),
    Kind("unreadable-codes", ERROR, "encode the shard anew: s2s-data encode"),
    Kind("code-length", ERROR, "encode the cut anew: its codes aren't of this audio, or not at this frame rate"),
    Kind("codec-differs", ERROR, "encode all data with the model's codec: s2s-data encode"),
    Kind("codebooks-differ", ERROR, "encode all data with one codec: s2s-data encode"),
    Kind("loud-outside", WARNING, "look for a missing turn, or for the other side's voice in this channel"),
    Kind("clipped", WARNING, "record or export at a lower level"),
    Kind("rates-differ", WARNING, "fine if intended: the loader resamples; low rates sound dull"),
    Kind("codes-missing", WARNING, "encode the rest too: batches use codes only where all their cuts have them"),
    Kind("shared-id", WARNING, "look whether one source is validation data for the other"),
)
KINDS = {kind.name: kind for kind in _ALL}


class Problem(NamedTuple):
    """Something wrong with one cut, or with more than one (no cut id)."""

    kind: str  # a name of KINDS
    cut_id: str | None
    where: str  # the manifest of the shard
    what: str

    @property
    def severity(self) -> str:
        """ERROR or WARNING."""
        return KINDS[self.kind].severity

    def __str__(self) -> str:
        return f"{self.cut_id or self.where}: {self.what}"
