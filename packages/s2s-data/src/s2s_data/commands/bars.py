"""The progress bar of the commands that write: on a terminal, and on stderr, so that output can be piped."""

import sys
from types import TracebackType

from tqdm import tqdm

from s2s_data.codes import Reporter


class DialogueBar:
    """Counts dialogues; lines that are said meanwhile stand above it."""

    def __init__(self, what: str) -> None:
        self._bar = tqdm(desc=what, unit=" dialogues", disable=None)
        self._audio_s = 0.0

    def __enter__(self) -> "DialogueBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def start(self, num_dialogues: int) -> None:
        """Say how many there are."""
        self._bar.reset(num_dialogues)

    def add(self, num_dialogues: int) -> None:
        """Count some as finished."""
        self._bar.update(num_dialogues)

    def say(self, line: str) -> None:
        """Write a line to stderr."""
        tqdm.write(line, file=sys.stderr)

    def reporter(self) -> Reporter:
        """Return what encoding tells of its progress."""
        return Reporter(self.start, self._encoded, self.say)

    def _encoded(self, num_dialogues: int, audio_s: float) -> None:
        self._audio_s += audio_s
        elapsed_s = self._bar.format_dict["elapsed"]
        if elapsed_s:
            self._bar.set_postfix_str(f"{self._audio_s / elapsed_s:.0f} audio-s/s", refresh=False)
        self.add(num_dialogues)
