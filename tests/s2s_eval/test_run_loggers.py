import hashlib
import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from s2s_eval.dialogue_scores import DialogueScore
from s2s_eval.run_loggers import COLUMNS, log_dialogues
from s2s_eval.samples import SampleAudio, SampleKeeper, write_audio
from tests.s2s_eval.builders import RATE, scored, tone

NASTY = '<b>bold</b> | "quotes" – ünï'


def valued(dialogue: DialogueScore, *values: str) -> DialogueScore:
    turns = [replace(turn, value=value) for turn, value in zip(dialogue.scored_turns, values, strict=True)]
    return replace(dialogue, scored_turns=turns)


def validated(folder: Path) -> list[DialogueScore]:
    """Return six dialogues of two data sets; the wavs of two of each are in the folder."""
    dialogues = [scored("seen", f"cut/{i}", [(NASTY, "good day"), ("so long", "so long")]) for i in range(4)]
    dialogues = [valued(dialogue, "good day", "so long") for dialogue in dialogues]
    dialogues += [scored("new", f"cut{i}", [("", "the right ones")]) for i in range(2)]
    keeper = SampleKeeper(2)
    for dialogue in dialogues:
        audio = SampleAudio(tone(1.0), RATE, tone(2.0, hz=300), tone(1.5, hz=400), RATE, RATE)
        keeper.add(dialogue.dataset, dialogue.cut_id, audio)
    write_audio(folder, dialogues, keeper, 2)
    return dialogues


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def staged(data: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the table that waits to be sent, and the files beside it by their hashes."""
    files = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in (data / "artifacts/staging").iterdir()}
    texts = [path.read_bytes() for path in files.values() if not path.read_bytes().startswith(b"RIFF")]
    (table,) = (found for found in map(json.loads, texts) if "columns" in found)
    return table, files


def test_a_wandb_run_gets_a_table_with_texts_scores_and_audio(offline: Path) -> None:
    logger = WandbLogger(project="p", save_dir=offline)
    log_dialogues([logger], 7, validated(offline / "step_7"), offline / "step_7")
    logger.experiment.finish()
    assert list(offline.glob("wandb/offline-run-*/files/media/table/dialogues_*.table.json"))
    table, files = staged(offline / "data")
    assert table["columns"] == COLUMNS
    rows = {(row[0], row[1]): dict(zip(COLUMNS, row, strict=True)) for row in table["data"]}
    assert {dataset for dataset, _ in rows} == {"seen", "new"}
    assert len(rows) == 4  # two of each data set were kept
    row = next(row for (dataset, _), row in rows.items() if dataset == "seen")
    assert row["reference_text"] == "good day so long"
    assert row["generated_text"] == row["asr"] == f"{NASTY} so long"
    assert row["asr_wer"] > 50
    assert row["answer_accuracy"] == row["answer_accuracy_text"] == 50.0
    assert next(row for (dataset, _), row in rows.items() if dataset == "new")["answer_accuracy"] is None
    assert row["quality"] is None
    for name, seconds, channels in (("user_left_generated_right", 2.0, 2), ("reference", 1.5, 1)):
        sound = soundfile.info(files[row[name]["sha256"]])
        assert (sound.duration, sound.channels) == (seconds, channels)


def test_a_tensorboard_run_gets_texts_and_audio(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    log_dialogues([logger], 7, validated(tmp_path / "step_7"), tmp_path / "step_7", max_per_dataset=1)
    events = EventAccumulator(logger.log_dir).Reload()
    texts = {tag: events.Tensors(tag)[0] for tag in events.Tags()["tensors"]}
    assert len(texts) == 2
    (tag,) = (tag for tag in texts if "/seen/" in tag)
    assert texts[tag].step == 7
    shown = texts[tag].tensor_proto.string_val[0].decode()
    assert f"    {NASTY} so long" in shown
    assert "    good day so long" in shown
    assert "asr_wer" in shown
    lengths = {}
    for name in ("user_and_generated", "generated", "reference"):
        (event,) = events.Audio(f"{tag.removesuffix('/text_summary')}/{name}")
        assert event.content_type == "audio/wav"
        assert event.step == 7
        lengths[name] = event.length_frames / event.sample_rate
    assert lengths == {"user_and_generated": 2.0, "generated": 2.0, "reference": 1.5}


def test_other_loggers_get_nothing_and_nothing_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "step_7"
    validated(folder)
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import sys; from lightning.pytorch.loggers import CSVLogger; from s2s_eval.run_loggers import log_dialogues;"
        f"from tests.s2s_eval.builders import scored; from pathlib import Path; folder = Path({str(folder)!r});"
        f"log_dialogues([CSVLogger({str(tmp_path)!r})], 7, [scored('new', 'cut0', [('a', 'b')])], folder);"
        "print([name for name in ('wandb', 'tensorboard', 'torch.utils.tensorboard') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert sorted(tmp_path.rglob("*")) == before


def test_one_logger_that_fails_is_told_and_the_others_still_get_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dialogues = validated(tmp_path / "step_7")
    (tmp_path / "file").write_text("in the way")
    broken = TensorBoardLogger(tmp_path / "file" / "logs")
    fine = TensorBoardLogger(tmp_path / "fine")
    with caplog.at_level(logging.WARNING):
        log_dialogues([broken, CSVLogger(tmp_path), fine], 7, dialogues, tmp_path / "step_7")
    assert "weren't given to TensorBoardLogger" in caplog.text
    assert "Training goes on" in caplog.text
    assert len(EventAccumulator(fine.log_dir).Reload().Tags()["audio"]) == 12


def test_a_broken_wav_costs_the_table_not_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dialogues = validated(tmp_path / "step_7")
    for path in (tmp_path / "step_7").glob("*/*.wav"):
        path.write_bytes(b"half a hea")
    with caplog.at_level(logging.WARNING):
        log_dialogues([TensorBoardLogger(tmp_path / "logs")], 7, dialogues, tmp_path / "step_7")
    assert "step 7" in caplog.text


def test_without_kept_audio_nothing_is_written(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    log_dialogues([logger], 7, [scored("new", "cut0", [("a", "b")])], tmp_path / "step_7")
    assert not (tmp_path / "logs").exists()
