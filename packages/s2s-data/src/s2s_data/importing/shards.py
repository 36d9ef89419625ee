"""Writing dialogues into a Shar, shard by shard, so that a run that was stopped can go on.

Beside the Shar ``x`` lies the folder ``x.import`` (in the Shar itself lhotse would take it for a field). A shard is
written into its ``unfinished/`` and renamed into place; then its report is written, which marks it as done. A shard
in which dialogues were skipped is written anew once one of them reads otherwise.
"""

import hashlib
import io
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile
import torch
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.shar import SharWriter
from lhotse.supervision import AlignmentItem
from lhotse.utils import compute_num_samples

from s2s_data.batch import Turn
from s2s_data.errors import DataError
from s2s_data.importing.audio import fit, resample
from s2s_data.importing.options import ImportOptions
from s2s_data.importing.recorded import DialogueError, FloatArray, Item, Reader, RecordedDialogue
from s2s_data.importing.summary import ImportSummary, ShardReport, Skipped
from s2s_data.roles import USER, WORD
from s2s_data.shar import CUTS, RECORDING, TARGET_AUDIO
from s2s_data.whole_shard import is_manifest, whole_shard

UNFINISHED = "unfinished"
_PLAN = "plan.json"

# These change how an import runs, not what it writes.
_RUN_OPTIONS = ("on_error", "workers")

_TOLD_OF_A_KIND = 3


def write_dialogues(
    items: Sequence[Item],
    read: Reader,
    out_dir: Path,
    options: ImportOptions,
    *,
    plan: dict[str, Any],
    progress: Callable[[int], None] = lambda num_items: None,
    say: Callable[[str], None] = lambda line: None,
) -> ImportSummary:
    """Read all ``items`` and write them into a Shar.

    Parameters
    ----------
    items
        The dialogues, in the order of the Shar.
    read
        Reads one.
    out_dir
        The Shar. Shards that it has already, of the same items and options, are left as they are, unless an
        item that was skipped can be used by now.
    options
        How to write.
    plan
        What the caller was asked for, beside ``options``: a run that goes on must have been asked the same.
    progress
        Is told how many items were finished.
    say
        Is told of the first three items of a kind that are skipped, and at the end how many more there are.

    Returns
    -------
    ImportSummary
        What the Shar holds, with the shards of earlier runs.

    Raises
    ------
    DataError
        If the folder holds something else, two items have one id, or, with ``on_error="stop"``, an item can't
        be used.

    """
    _check_ids(items)
    _agree_on_plan(out_dir, {**plan, **_written_options(options), "items": _digest(items)})
    tasks = [
        _Task(number, items[first : first + options.shard_size], read, out_dir, options)
        for number, first in enumerate(range(0, len(items), options.shard_size))
    ]
    done = {task.number: report for task in tasks if (report := task.finished()) is not None}
    progress(sum(len(task.items) for task in tasks if task.number in done))
    reports, teller = dict(done), _Teller(say)
    todo = [task for task in tasks if task.number not in done]
    for number, report in _run(todo, options.workers, progress, teller.tell):
        reports[number] = report
    teller.tell_of_more(f"{work_dir(out_dir)}/*.json")
    shutil.rmtree(work_dir(out_dir) / UNFINISHED, ignore_errors=True)
    return ImportSummary(str(out_dir), [reports[task.number] for task in tasks], num_shards_kept=len(done))


def work_dir(out_dir: Path) -> Path:
    """Return the folder beside the Shar ``out_dir`` in which an import keeps its reports."""
    named = out_dir if out_dir.name else out_dir.absolute()  # "." has no name
    return named.with_name(f"{named.name}.import")


class _Teller:
    """Says what was skipped, without filling the screen."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._counts: Counter[str] = Counter()

    def tell(self, skipped: Skipped) -> None:
        self._counts[skipped.kind] += 1
        if self._counts[skipped.kind] <= _TOLD_OF_A_KIND:
            self._say(f"skipped {skipped.message}")

    def tell_of_more(self, where: str) -> None:
        for kind, count in self._counts.items():
            if count > _TOLD_OF_A_KIND:
                self._say(f"and {count - _TOLD_OF_A_KIND} more: {kind}; all in {where}")


@dataclass(frozen=True)
class _Task:
    """A shard to write."""

    number: int
    items: Sequence[Item]
    read: Reader
    out_dir: Path
    options: ImportOptions

    @property
    def report(self) -> Path:
        return work_dir(self.out_dir) / f"{self.number:06d}.json"

    def finished(self) -> ShardReport | None:
        """Return the report of an earlier run; None if the shard is to be written.

        That is so if there is none, the shard was removed since, or a dialogue that was skipped reads otherwise now.
        """
        if not self.report.exists():
            return None
        report = ShardReport.read(self.report)
        manifest = self.out_dir / f"{CUTS}.{self.number:06d}.jsonl.gz"
        is_there = manifest.exists() or report.num_dialogues == 0
        return report if is_there and self._skips_again(report) else None

    def _skips_again(self, report: ShardReport) -> bool:
        """Whether what was skipped is what would be: nothing is mended, and skipping is still what is asked for."""
        messages = {skipped.name: skipped.message for skipped in report.skipped}
        if messages and self.options.on_error == "stop":
            return False
        return all(self._complaint(item) == messages[item.name] for item in self.items if item.name in messages)

    def _complaint(self, item: Item) -> str | None:
        try:
            self.read(item)
        except DialogueError as error:
            return str(error)
        return None

    def remove_shard(self) -> None:
        """Remove an earlier run's shard, the manifest first: without it there is no shard."""
        self.report.unlink(missing_ok=True)
        for path in sorted(self.out_dir.glob(f"*.{self.number:06d}.*"), key=is_manifest, reverse=True):
            path.unlink()


def _run(
    tasks: Sequence[_Task], workers: int, progress: Callable[[int], None], tell: Callable[[Skipped], None]
) -> Iterator[tuple[int, ShardReport]]:
    if workers == 0:
        for task in tasks:
            yield task.number, _write_shard(task, lambda: progress(1), tell)
        return
    # spawn: a fork would copy the locks of torch's threads
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:
        futures = {pool.submit(_write_shard, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                task, report = futures[future], future.result()
                for skipped in report.skipped:
                    tell(skipped)
                progress(len(task.items))
                yield task.number, report
        except BaseException:  # Ctrl-C too: the pool would write all other shards first
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process, and should print no traceback


def _write_shard(
    task: _Task,
    on_item: Callable[[], None] = lambda: None,
    on_skipped: Callable[[Skipped], None] = lambda skipped: None,
) -> ShardReport:
    unfinished = work_dir(task.out_dir) / UNFINISHED / f"{task.number:06d}"
    report = ShardReport()
    fields = {RECORDING: task.options.audio_format, TARGET_AUDIO: task.options.audio_format}
    with whole_shard(unfinished, task.out_dir):
        with SharWriter(str(unfinished), fields, shard_size=None, shard_suffix=f".{task.number:06d}") as writer:
            for item in task.items:
                try:
                    dialogue = task.read(item)
                except DialogueError as error:
                    if task.options.on_error == "stop":
                        raise
                    report.skip(item.name, error)
                    on_skipped(report.skipped[-1])
                else:
                    writer.write(_cut(item.dialogue_id, dialogue, task.options))
                    report.add(dialogue)
                on_item()
        task.remove_shard()
    report.write(task.report)
    return report


def _cut(dialogue_id: str, dialogue: RecordedDialogue, options: ImportOptions) -> MonoCut:
    user_S = resample(dialogue.user, options.source_rate_hz)
    user = _recording(f"{dialogue_id}-user", user_S, options.source_rate_hz)
    agent_S = resample(dialogue.agent, options.target_rate_hz)
    num_samples = compute_num_samples(user.duration, options.target_rate_hz)
    cut = MonoCut(dialogue_id, start=0.0, duration=user.duration, channel=0, recording=user)
    cut.target_audio = _recording(f"{dialogue_id}-agent", fit(agent_S, num_samples), options.target_rate_hz)
    cut.supervisions = [
        SupervisionSegment(
            id=f"{dialogue_id}-{number}",
            recording_id=user.id,
            start=round(turn.start_s, 6),
            duration=round(turn.duration_s, 6),
            text=turn.text,
            speaker=options.user_role if turn.role == USER else options.agent_role,
            alignment=_alignment(turn),
        )
        for number, turn in enumerate(dialogue.turns)
    ]
    return cut


def _alignment(turn: Turn) -> dict[str, list[AlignmentItem]] | None:
    words = [AlignmentItem(text, round(turn.start_s + at_s, 6), round(for_s, 6)) for text, at_s, for_s in turn.words]
    return {WORD: words} if words else None


def _recording(recording_id: str, samples_S: FloatArray, rate_hz: int) -> Recording:
    wav = io.BytesIO()
    soundfile.write(wav, samples_S, rate_hz, format="WAV", subtype="FLOAT")
    return Recording.from_bytes(wav.getvalue(), recording_id)


def _check_ids(items: Sequence[Item]) -> None:
    seen: dict[str, str] = {}
    for item in items:
        if item.dialogue_id in seen:
            raise DataError(
                f"{item.name} and {seen[item.dialogue_id]} would both be the dialogue {item.dialogue_id!r}: "
                "give each an id of its own"
            )
        seen[item.dialogue_id] = item.name


def _agree_on_plan(out_dir: Path, plan: dict[str, Any]) -> None:
    """Write down what is asked for, or compare it with what an earlier run was asked."""
    path = work_dir(out_dir) / _PLAN
    plan = json.loads(json.dumps(plan))  # tuples become lists, as in the file
    if path.exists():
        earlier = json.loads(path.read_text())
        if different := sorted(key for key in {*plan, *earlier} if plan.get(key) != earlier.get(key)):
            raise DataError(
                f"{out_dir} holds an import with other values of {', '.join(different)} (see {path}): to go on with "
                "it give the same ones, else name another folder"
            )
        out_dir.mkdir(parents=True, exist_ok=True)
        return
    if out_dir.exists() and any(out_dir.iterdir()):
        raise DataError(f"{out_dir} isn't empty, and holds no import to go on with: name another folder")
    for folder in (out_dir, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(plan, indent=1))
    unfinished.replace(path)


def _written_options(options: ImportOptions) -> dict[str, Any]:
    return {key: value for key, value in asdict(options).items() if key not in _RUN_OPTIONS}


def _digest(items: Sequence[Item]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for item in items:
        digest.update(json.dumps([item.dialogue_id, item.row], sort_keys=True).encode())
    return digest.hexdigest()
