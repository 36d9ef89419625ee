"""What an import did."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from s2s_data.importing.recorded import DialogueError, RecordedDialogue
from s2s_data.roles import AGENT, USER
from s2s_data.wording import counted


@dataclass(frozen=True)
class Skipped:
    """A dialogue that wasn't imported."""

    name: str
    kind: str
    message: str


@dataclass
class ShardReport:
    """What one shard holds. It is kept beside the Shar, so that a run that goes on can tell of all of it."""

    num_dialogues: int = 0
    audio_s: float = 0.0
    num_user_turns: int = 0
    num_agent_turns: int = 0
    num_without_user: int = 0  # dialogues in which the user has no turn
    skipped: list[Skipped] = field(default_factory=list)

    def add(self, dialogue: RecordedDialogue) -> None:
        """Count a dialogue."""
        roles = Counter(turn.role for turn in dialogue.turns)
        self.num_dialogues += 1
        self.audio_s += dialogue.user.duration_s
        self.num_user_turns += roles[USER]
        self.num_agent_turns += roles[AGENT]
        self.num_without_user += roles[USER] == 0

    def skip(self, name: str, error: DialogueError) -> None:
        """Count a dialogue that can't be used."""
        self.skipped.append(Skipped(name, error.kind, str(error)))

    def write(self, path: Path) -> None:
        """Write it as JSON, in one step."""
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1))
        unfinished.replace(path)

    @classmethod
    def read(cls, path: Path) -> "ShardReport":
        """Read what :meth:`write` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "skipped": [Skipped(**skipped) for skipped in values["skipped"]]})


@dataclass(frozen=True)
class ImportSummary:
    """What the Shar holds now."""

    out_dir: str
    reports: Sequence[ShardReport]
    num_shards_kept: int  # of an earlier run

    @property
    def num_dialogues(self) -> int:
        """Dialogues in the Shar."""
        return sum(report.num_dialogues for report in self.reports)

    @property
    def audio_s(self) -> float:
        """Seconds of the dialogues; both channels count once."""
        return sum(report.audio_s for report in self.reports)

    @property
    def num_user_turns(self) -> int:
        """Turns of the user."""
        return sum(report.num_user_turns for report in self.reports)

    @property
    def num_agent_turns(self) -> int:
        """Turns of the agent."""
        return sum(report.num_agent_turns for report in self.reports)

    @property
    def skipped(self) -> list[Skipped]:
        """What wasn't imported."""
        return [skipped for report in self.reports for skipped in report.skipped]

    def lines(self) -> list[str]:
        """Return the summary for a reader."""
        kept = f", {self.num_shards_kept} of them from an earlier run" if self.num_shards_kept else ""
        lines = [
            f"{self.out_dir}: {counted(self.num_dialogues, 'dialogue')}, {self.audio_s / 3600:.2f} h, "
            f"{counted(self.num_user_turns, 'turn')} of the user and {self.num_agent_turns} of the agent, "
            f"{counted(len(self.reports), 'shard')}{kept}"
        ]
        if without := sum(report.num_without_user for report in self.reports):
            lines.append(
                f"{without} of them have no turn of the user: transcribe the user's channel too (moshi-finetune's "
                "annotate.py does the left one only), or take the loud parts of it as turns with --find-user-turns"
            )
        if kinds := Counter(skipped.kind for skipped in self.skipped):
            counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
            lines.append(f"skipped {kinds.total()} of {self.num_dialogues + kinds.total()}: {counts}")
            lines.append("once they are mended, the same command imports them too")
        return lines
