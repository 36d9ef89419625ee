"""Scoring folders of speech, without any model of ours: the same metrics, from the same code, as in validation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from s2s_eval.batch_scoring import ScoredDialogue, score_batch
from s2s_eval.config import ScoringConfig, check_config
from s2s_eval.dialogue_scores import DialogueScore, one_per_dialogue, validation_metrics
from s2s_eval.folders.audio import RIGHT, named
from s2s_eval.folders.batches import Kind, batches, read_batch, written_turns
from s2s_eval.folders.pairs import Pair, find_pairs
from s2s_eval.folders.texts import Turn
from s2s_eval.metrics import bleu_signature
from s2s_eval.report import REPORT_FILE, write_report
from s2s_eval.samples import SampleKeeper, step_dir, write_audio, write_scores
from s2s_eval.scorers import Scorers

# metrics that need the model's own text, and those that need it turn by turn
TEXT_METRICS = ("val_txt_bleu",)
SAID_METRICS = ("val_said_wer", "val_said_cer", "val_answer_accuracy_text")


@dataclass(frozen=True)
class FolderScores:
    """The scores of a folder, and the audio of those dialogues that are kept to listen to."""

    dataset: str
    dialogues: list[DialogueScore]
    metrics: dict[str, float]  # by the names that validation logs
    about: dict[str, str]  # how they were computed
    notes: list[str]  # what was left out
    keeper: SampleKeeper


def score_folders(
    hyp: str | Path,
    ref: str | Path,
    config: ScoringConfig,
    *,
    dataset: str | None = None,
    agent_channel: int = RIGHT,
    allow_missing: bool = False,
) -> FolderScores:
    """Score the speech in the folder ``hyp`` against ``ref``: a folder, or a ``dialogues.jsonl`` of a validation.

    ``dataset`` names the figures; without it they have the folder's name. ``agent_channel`` is that of files with two
    channels (0: left). Memory doesn't grow with the number of files. Raises ValueError for what a user can change: a
    folder, a file, ids without a partner (unless ``allow_missing``), the recogniser.
    """
    check_config(config)
    with Scorers(config) as scorers:
        pairs, notes = find_pairs(Path(hyp), Path(ref), agent_channel, allow_missing=allow_missing)
        notes = notes + _text_notes(pairs, allow_missing=allow_missing)
        dataset = dataset or Path(hyp).resolve().name or "speech"
        keeper = SampleKeeper(config.max_samples_per_dataset)
        dialogues: list[DialogueScore] = []
        with tqdm(total=len(pairs), desc="scoring", unit="file", disable=None) as progress:
            for kind, members in batches(pairs):
                for score, audio in _score(dataset, kind, members, config, scorers):
                    dialogues.append(score)
                    keeper.add(dataset, score.cut_id, audio)
                progress.update(len(members))
        has_asr = scorers.transcriber is not None
    dialogues = one_per_dialogue([dialogues])
    metrics = _metrics(dialogues, pairs, has_asr=has_asr, language=config.language)
    if not metrics:
        raise ValueError(
            f"nothing of {hyp} can be scored: choose a recogniser for what is said, write ID.hyp.txt for what the "
            "model writes, or give turns of the user in ID.json for turn-taking"
        )
    about = {
        "asr": config.scoring_asr,
        "bleu": bleu_signature(config.language),
        "language": config.language,
        "quality": config.quality,
        "speaker_similarity": config.speaker_similarity,
        "hypotheses": str(hyp),
        "references": str(ref),
    }
    return FolderScores(dataset, dialogues, metrics, about, notes, keeper)


def write_folder_scores(scores: FolderScores, out: str | Path, config: ScoringConfig, step: int = 0) -> Path:
    """Write scores, texts, audio to listen to and the report into the folder ``out``; return the path of its page.

    ``out`` is laid out as a run: the scores of several steps may lie in one. Raises ValueError as
    :func:`refuse_step` does.
    """
    refuse_step(out, step)
    folder = step_dir(Path(out), step)
    limit = config.max_samples_per_dataset
    write_audio(folder, scores.dialogues, scores.keeper, limit)
    write_scores(folder, step, scores.dialogues, scores.metrics, limit, scores.about)
    page = write_report(out, step)
    newest = Path(out) / REPORT_FILE
    if page != newest.resolve():
        write_report(out)  # the newest one's names this one, too
    return page


def refuse_step(out: str | Path, step: int) -> None:
    """Raise ValueError if ``out`` isn't a folder or has scores of this step already."""
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file: give a folder for the scores")
    folder = step_dir(Path(out), step)
    if folder.exists():
        raise ValueError(f"{folder} is there already: give another --out or --step, or remove it")


def _score(
    dataset: str, kind: Kind, pairs: Sequence[Pair], config: ScoringConfig, scorers: Scorers
) -> list[ScoredDialogue]:
    data = read_batch(kind, pairs, scorers.transcriber, has_ceiling=config.score_ceiling)
    rates = replace(
        config,
        source_sample_rate=kind.user_sample_rate,
        target_sample_rate=kind.reference_sample_rate or kind.sample_rate,
    )
    return score_batch(dataset, data.batch, data.output, rates, scorers.transcriber, scorers.quality, scorers.speakers)


def _text_notes(pairs: Sequence[Pair], *, allow_missing: bool) -> list[str]:
    """Say which figures are over some dialogues only. Raises ValueError where texts are forgotten, it seems."""
    without = [pair.name for pair in pairs if pair.hypothesis.text is None]
    if without and len(without) < len(pairs) and not allow_missing:
        raise ValueError(
            f"{len(without)} of {len(pairs)} hypotheses have no ID.hyp.txt ({named(without)}), others have one: write "
            "them all or none, or score text with those that have one with --allow-missing"
        )
    unplaced = [pair.name for pair in pairs if pair.hypothesis.text is not None and not _is_placed(pair)]
    notes = []
    if 0 < len(without) < len(pairs):
        names = ", ".join(TEXT_METRICS)
        notes.append(f"{names}: without the {len(without)} that have no ID.hyp.txt ({named(without)})")
    if unplaced:
        names = ", ".join(SAID_METRICS)
        notes.append(
            f"{names}: without the {len(unplaced)} whose ID.hyp.txt hasn't a line for each agent turn of the reference "
            f"({named(unplaced)})"
        )
    return notes


def _is_placed(pair: Pair) -> bool:
    """Whether it is known what the model wrote in which turn."""
    one_turn = [Turn("agent", 0.0, 0.0, "")]
    return written_turns(pair.hypothesis, pair.reference.turns or one_turn) is not None


def _metrics(
    dialogues: Sequence[DialogueScore], pairs: Sequence[Pair], *, has_asr: bool, language: str
) -> dict[str, float]:
    """Return validation's metrics, those of the model's text over the dialogues only that have it."""
    metrics = validation_metrics(dialogues, has_asr=has_asr, language=language)
    for stems, known in [
        (TEXT_METRICS, {pair.name for pair in pairs if pair.hypothesis.text is not None}),
        (SAID_METRICS, {pair.name for pair in pairs if _is_placed(pair)}),
    ]:
        if len(known) < len(dialogues):
            members = [dialogue for dialogue in dialogues if dialogue.cut_id in known]
            some = validation_metrics(members, has_asr=has_asr, language=language)
            names = {stem + ending for stem in stems for ending in ("", f"_{dialogues[0].dataset}")}
            metrics = {name: value for name, value in metrics.items() if name not in names}
            metrics |= {name: value for name, value in some.items() if name in names}
    return metrics
