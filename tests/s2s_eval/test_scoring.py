import json
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from s2s_eval.batch_scoring import score_batch
from s2s_eval.config import ScoringConfig
from s2s_eval.scoring import ValidationScoring
from s2s_eval.transcripts import Transcriber
from tests.s2s_eval.builders import (
    RATE,
    WHISPER,
    EchoModel,
    SpokenDialogue,
    batch_of,
    perfect_output,
    spoken_dialogues,
    tone_dialogue,
)


def rounds() -> list[dict[str, list[SpokenDialogue]]]:
    """Return two validation batches: both sets, then one set empty (B = 0)."""
    france, sums = spoken_dialogues()
    return [{"seen": [france], "new": [sums]}, {"seen": [sums], "new": []}]


def trainer(run_dir: Path, scoring: ValidationScoring, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[*callbacks, scoring],
        default_root_dir=run_dir,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        **options,
    )


@pytest.fixture(scope="module")
def speaking_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.Trainer, ValidationScoring]:
    """Train with real Whisper, a checkpoint on val_asr_bleu, samples and a report."""
    run_dir = tmp_path_factory.mktemp("run")
    scoring = ValidationScoring(ScoringConfig(WHISPER, target_sample_rate=RATE), run_dir)
    checkpoint = ModelCheckpoint(run_dir / "checkpoints", "{val_asr_bleu:.0f}", "val_asr_bleu", mode="max")
    fit = trainer(run_dir, scoring, checkpoint)
    fit.fit(EchoModel(rounds()))
    return run_dir, fit, scoring


class TestSpeakingModel:
    def test_metrics_are_logged(self, speaking_run) -> None:
        metrics = {name: float(value) for name, value in speaking_run[1].callback_metrics.items()}
        assert metrics["val_asr_bleu_seen"] > 85
        assert metrics["ceiling_asr_bleu_seen"] == metrics["val_asr_bleu_seen"]
        assert metrics["shuffled_asr_bleu_seen"] < 20
        assert metrics["val_txt_bleu"] == pytest.approx(100)
        assert metrics["val_asr_wer_new"] < 25
        assert metrics["val_empty_rate_seen"] == 0
        assert "shuffled_asr_bleu_new" not in metrics
        # of Paris, twelve and Tuesday Whisper doesn't hear twelve
        assert metrics["val_answer_accuracy_seen"] == pytest.approx(200 / 3)
        assert metrics["ceiling_answer_accuracy_seen"] == pytest.approx(200 / 3)
        assert metrics["val_answer_accuracy_new"] == 50
        assert metrics["val_answer_accuracy_text_new"] == 100

    def test_checkpoints_can_monitor_asr_bleu(self, speaking_run) -> None:
        run_dir, fit, _ = speaking_run
        bleu = fit.callback_metrics["val_asr_bleu"]
        assert fit.checkpoint_callback.best_model_score == bleu
        assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"val_asr_bleu={bleu:.0f}.ckpt"]

    def test_the_recogniser_is_freed(self, speaking_run) -> None:
        assert not speaking_run[2].scorers.transcriber.is_on_gpu

    def test_samples_can_be_listened_to(self, speaking_run) -> None:
        folder = speaking_run[0] / "samples" / "step_4"
        stereo, rate = soundfile.read(folder / "seen" / "france.wav")
        france = spoken_dialogues()[0]
        assert rate == RATE
        np.testing.assert_allclose(stereo[:, 0], france.user, atol=1e-4)
        np.testing.assert_allclose(stereo[:, 1], france.agent, atol=1e-4)
        lines = [json.loads(line) for line in (folder / "seen" / "dialogues.jsonl").read_text().splitlines()]
        assert [line["cut_id"] for line in lines] == ["france", "sums"]
        assert lines[0]["scored_turns"][0]["reference"] == "The capital of France is Paris."
        assert "paris" in lines[0]["scored_turns"][0]["asr"].lower()
        assert [line["answer_accuracy"] for line in lines] == [100, 50]
        assert [turn["value"] for line in lines for turn in line["scored_turns"]] == [
            "Paris",
            None,
            "twelve",
            "Tuesday",
        ]
        scores = json.loads((folder / "scores.json").read_text())
        assert scores["metrics"]["val_txt_bleu"] == pytest.approx(100)
        assert "version:" in scores["about"]["bleu"]

    def test_a_report_is_written(self, speaking_run) -> None:
        assert (speaking_run[0] / "report.html").stat().st_size > 50_000


def test_a_model_that_says_nothing(tmp_path: Path) -> None:
    scoring = ValidationScoring(ScoringConfig(WHISPER, score_ceiling=False))
    fit = trainer(tmp_path, scoring)
    fit.validate(EchoModel(rounds(), speaks=False), verbose=False)
    metrics = fit.callback_metrics
    assert metrics["val_asr_bleu"] == 0
    assert metrics["val_empty_rate_seen"] == 100
    assert metrics["val_asr_wer_seen"] == 100
    assert "ceiling_asr_bleu_seen" not in metrics


def test_an_exception_frees_the_recogniser(tmp_path: Path) -> None:
    scoring = ValidationScoring(ScoringConfig(WHISPER))
    model = EchoModel(rounds())
    model.fail_at_batch = 1
    seen_loaded = []

    class Watch(pl.Callback):
        def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
            seen_loaded.append(scoring.scorers.transcriber.is_loaded)  # type: ignore[union-attr]

    fit = pl.Trainer(
        accelerator="cpu",
        callbacks=[scoring, Watch()],
        logger=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(RuntimeError, match="the model failed"):
        fit.validate(model, verbose=False)
    assert seen_loaded == [True]
    assert scoring.scorers.transcriber is not None
    assert not scoring.scorers.transcriber.is_loaded


def test_the_sanity_check_is_not_scored_unless_asked(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        """Ends the run after the sanity check and keeps what was logged there."""

        def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.metrics = dict(trainer.callback_metrics)
            trainer.should_stop = True

    logged = []
    for wanted in (False, True):
        scoring = ValidationScoring(ScoringConfig("none", score_sanity_check=wanted))
        stop = Stop()
        fit = pl.Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[scoring, stop], logger=False, limit_train_batches=1,
            enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
        )  # fmt: skip
        fit.fit(EchoModel(rounds()))
        logged.append("val_txt_bleu" in stop.metrics)
    assert logged == [False, True]


def test_without_asr_the_text_is_still_scored(tmp_path: Path) -> None:
    scoring = ValidationScoring(ScoringConfig("none"), tmp_path)
    fit = trainer(tmp_path, scoring)
    fit.validate(EchoModel(rounds()), verbose=False)
    assert fit.callback_metrics["val_txt_bleu_seen"] == pytest.approx(100)
    assert not any("asr" in name for name in fit.callback_metrics)


def test_a_bad_recogniser_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="pip install no-such-package"):
        ValidationScoring(ScoringConfig("package:no-such-package"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("asr_batch_size", 0),
        ("asr_num_threads", -1),
        ("max_samples_per_dataset", -1),
        ("early_start_s", -0.1),
        ("barge_in_stop_s", math.nan),
        ("silence_dbfs", 3.0),
        ("silence_dbfs", math.nan),
        ("language", "xx"),
    ],
)
def test_a_value_that_means_nothing_is_refused_before_training(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"scoring\.{key}="):
        ValidationScoring(ScoringConfig(**{key: value}))


def test_nothing_is_held_after_a_validation_without_a_run_dir(tmp_path: Path) -> None:
    scoring = ValidationScoring(ScoringConfig())
    trainer(tmp_path, scoring).validate(EchoModel(rounds()), verbose=False)
    assert not [held for name, held in vars(scoring).items() if name != "config" and isinstance(held, list) and held]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ([(4.52, 7.0, "a"), (11.4, 13.0, "b")], ["a", "b"]),  # 0.08 and 0.2 s ahead of their windows
        ([(5.0, 20.0, "a")], ["a", ""]),  # its end was forgotten
        ([(1.0, 4.6, "a"), (19.92, 20.08, "b")], ["", "b"]),
    ],
)
def test_what_is_written_belongs_to_the_turn_it_is_said_in(
    written: list[tuple[float, float, str]], expected: list[str]
) -> None:
    batch, output = tone_dialogue([("agent", 5.0, 7.0), ("agent", 12.0, 14.0)], [], 20.0)
    [one] = score_batch("d", batch, output | {"text_turns": [written]}, ScoringConfig(), None)
    assert [turn.generated_text for turn in one.score.scored_turns] == expected


def test_samples_are_few_and_a_disk_error_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    scoring = ValidationScoring(ScoringConfig("none"), tmp_path)
    fit = trainer(tmp_path, scoring)
    fit.validate(EchoModel(rounds()), verbose=False)
    assert fit.callback_metrics["val_txt_bleu"] == pytest.approx(100)
    assert "were not written" in caplog.text

    run = tmp_path / "other"
    scoring = ValidationScoring(ScoringConfig("none", max_samples_per_dataset=1), run)
    trainer(run, scoring).validate(EchoModel(rounds()), verbose=False)
    folder = run / "samples" / "step_0" / "seen"
    assert len([path for path in folder.glob("*.wav") if "reference" not in path.name]) == 1
    assert len((folder / "dialogues.jsonl").read_text().splitlines()) == 2


def test_the_config_is_a_structured_config() -> None:
    config = OmegaConf.merge(OmegaConf.structured(ScoringConfig), {"scoring_asr": "none"})
    assert config.max_samples_per_dataset == 8
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(OmegaConf.structured(ScoringConfig), {"max_sample": 1})


def test_a_turn_is_scored_with_what_is_said_in_its_window() -> None:
    """Answers in the wrong order: right words at the wrong time are wrong."""
    [france, _] = spoken_dialogues()
    first, second = (turn for turn in france.turns if turn.role == "agent")
    swapped = np.zeros_like(france.agent)
    for turn, place in [(first, second), (second, first)]:
        start, end = round(turn.start_s * RATE), round((turn.start_s + turn.duration_s) * RATE)
        swapped[round(place.start_s * RATE) :][: end - start] = france.agent[start:end][
            : len(swapped) - round(place.start_s * RATE)
        ]
    output = perfect_output([france])
    output["audio"] = torch.from_numpy(swapped)[None]
    transcriber = Transcriber(ValidationScoring(ScoringConfig(WHISPER)).scorers.transcriber.config, -50)  # type: ignore[union-attr]
    [scored] = score_batch("seen", batch_of([france]), output, ScoringConfig(score_ceiling=False), transcriber)
    transcriber.close()
    heard = [turn.asr.lower() for turn in scored.score.scored_turns]
    assert "spider" in heard[0]
    assert "paris" in heard[1]
    assert [turn.generated_text for turn in scored.score.scored_turns] == [first.text, second.text]
