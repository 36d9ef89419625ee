"""Runs with validations on disk, for the report's tests."""

import json
from dataclasses import replace
from pathlib import Path

from s2s_eval.dialogue_scores import DialogueScore, SpokenTurn
from s2s_eval.samples import SampleAudio, SampleKeeper, step_dir, write_audio, write_scores
from s2s_eval.turn_taking import BargeIn, Response
from tests.s2s_eval.builders import RATE, scored, tone

CODEC_RATE = 22050
NASTY = "</script><b>bold</b> & \"quotes\" 'single' – ünï 🎧 مرحبا \\n \ud800"
METRICS = {
    "val_asr_bleu": 10.0,
    "val_asr_bleu_seen": 12.5,
    "ceiling_asr_bleu_seen": 90.0,
    "shuffled_asr_bleu_seen": 2.0,
    "val_latency_s_median": 0.37,
    "val_token_perplexity": float("inf"),
    "val_code_accuracy_seen_k0": 55.0,
    "val_code_accuracy_seen_k1": 44.0,
    "val_answer_accuracy_seen": 50.0,
    "val_of_a_later_version": 1.25,
}
ABOUT = {"asr": "package:x", "bleu": "nrefs:1", "language": "en"}


def sound(seconds: float) -> SampleAudio:
    """Return tones: the user at 220 Hz, the generated agent at 300, the reference at 400."""
    return SampleAudio(
        tone(seconds), RATE, tone(seconds, CODEC_RATE, 300), tone(seconds, 24000, 400), 24000, CODEC_RATE
    )


def write_validation(
    run: Path, step: int, dialogues: list[DialogueScore], heard: int, metrics: dict[str, float]
) -> None:
    """Write a validation as the callback does; the first ``heard`` dialogues have audio."""
    keeper = SampleKeeper(1000)
    for dialogue in dialogues[:heard]:
        keeper.add(dialogue.dataset, dialogue.cut_id, sound(dialogue.duration_s))
    write_audio(step_dir(run, step), dialogues, keeper, 1000)
    write_scores(step_dir(run, step), step, dialogues, metrics, 1000, ABOUT)


def talked() -> DialogueScore:
    """Return a dialogue of 4 s that has everything a record can have."""
    dialogue = scored("seen", "cut2", [("good day", "good day"), ("", "so long")], ceiling="good day")
    values = ["Day", "long"]
    return replace(
        dialogue,
        scored_turns=[replace(turn, value=value) for turn, value in zip(dialogue.scored_turns, values, strict=True)],
        turns=[
            SpokenTurn("user", 0.0, 0.9, "Hello there"),
            SpokenTurn("agent", 1.0, 1.8, "good day"),
            SpokenTurn("user", 2.0, 2.9, NASTY),
            SpokenTurn("agent", 3.0, 3.8, "so long"),
        ],
        generated_speech=[(1.25, 2.5)],
        responses=[Response(0.9, 0.35, 0.1), Response(2.9, None, 0.1)],
        barge_ins=[BargeIn(2.0, 2.5, "yield", success=True), BargeIn(2.2, None, "yield", success=False)],
        quality=3.25,
        speaker_similarity=0.8,
        statistics={
            "frames": 50,
            "text_nll": 1.0,
            "text_hits": 45,
            "tokens": 10,
            "token_nll": 1.0,
            "token_hits": 9,
            "code_nll": [1.0, 2.0],
            "code_hits": [30, 20],
        },
    )


def full_run(folder: Path) -> Path:
    """Return a run with two validations of two data sets; the last dialogue has no audio."""
    run = folder / "my-run"
    dialogues = [
        scored("seen", "cut/1", [(NASTY, NASTY)], ceiling="x"),
        talked(),
        scored("new", "cut3", [("wrong words here", "the right ones")]),
    ]
    write_validation(run, 9, dialogues, 2, {"val_asr_bleu": 9.0})
    write_validation(run, 10, dialogues, 2, METRICS)
    rows = [{"step": i, "train_loss": 5 / i} for i in range(1, 1001)]
    rows[9] |= {"val_loss": 0.5, "val_loss_seen": 0.4, "val_asr_bleu": 10.0}
    rows.append({"step": 1001, "train_loss": float("nan")})
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1002, "tra'
    (run / "metrics.jsonl").write_text(text)
    return run


def old_run(folder: Path) -> Path:
    """Return a run as the first version wrote it, with the keys of a dialogue that it knew."""
    run = folder / "old-run"
    write_validation(run, 5, [scored("seen", "cut1", [("a b", "a c")])], 1, {"val_asr_bleu_seen": 4.0})
    path = step_dir(run, 5) / "seen" / "dialogues.jsonl"
    known = (
        *("dataset", "cut_id", "duration_s", "turns", "generated_turns", "reference_text", "generated_text"),
        *("scored_turns", "wav", "reference_wav", "asr_wer", "asr_bleu"),
    )
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: record[name] for name in known}) + "\n")
    scores = step_dir(run, 5) / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"about": {"asr": "none"}}))
    return run


def large_run(folder: Path, count: int) -> Path:
    """Return a run with many short dialogues, all with audio; dialogue i has i % 7 wrong words of ten."""
    run = folder / "large-run"
    words = [f"w{k}" for k in range(10)]
    dialogues = [
        replace(scored(f"set{i % 2}", f"cut-{i:03d}", [(" ".join(words[i % 7 :]), " ".join(words))]), duration_s=0.3)
        for i in range(count)
    ]
    write_validation(run, 1, dialogues, count, {"val_asr_bleu": 9.0})
    return run
