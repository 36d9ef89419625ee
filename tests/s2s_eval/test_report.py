import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s2s_eval.report import write_report
from s2s_eval.report_audio import mp3, waveform_peaks
from s2s_eval.samples import step_dir
from tests.s2s_eval.builders import RATE, scored, tone
from tests.s2s_eval.report_runs import NASTY, full_run, old_run, write_validation


class Islands(HTMLParser):
    """Collects the page's data elements and everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.loaded: list[str] = []
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._inside = found.get("id") if tag == "script" else None
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + data


def parse(page: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the page's data, and the audio by cut id."""
    parser = Islands()
    parser.feed(page.read_text(encoding="utf-8"))
    assert parser.loaded == ["data:,"]
    data = json.loads(parser.texts.pop("data"))
    sounds = {int(name.removeprefix("audio-")): json.loads(text) for name, text in parser.texts.items()}
    return data, {data["dialogues"][number]["cut_id"]: sound for number, sound in sounds.items()}


def test_the_page_holds_the_last_validation(tmp_path: Path) -> None:
    page = write_report(full_run(tmp_path))
    assert page == tmp_path / "my-run" / "report.html"
    data, sounds = parse(page)
    assert (data["run"], data["step"], data["datasets"]) == ("my-run", 10, ["new", "seen"])
    assert data["metrics"]["val_asr_bleu"] == 10
    assert data["metrics"]["val_loss_seen"] == 0.4
    assert "val_token_perplexity" not in data["metrics"]
    dialogues = {dialogue["cut_id"]: dialogue for dialogue in data["dialogues"]}
    assert [dialogue["cut_id"] for dialogue in data["dialogues"]] == ["cut3", "cut2", "cut/1"]  # worst first
    assert dialogues["cut/1"]["scored_turns"][0]["reference"] == NASTY
    assert [turn["wer"] for turn in dialogues["cut2"]["scored_turns"]] == [0, 100]
    assert [turn["is_heard"] for turn in dialogues["cut2"]["scored_turns"]] == [True, False]
    assert [turn["is_heard"] for turn in dialogues["cut3"]["scored_turns"]] == [None]
    assert {cut_id for cut_id, dialogue in dialogues.items() if dialogue["audio"]} == set(sounds) == {"cut/1", "cut2"}
    assert dialogues["cut2"]["scores"] == {
        "wer": pytest.approx(50),
        "bleu": pytest.approx(dialogues["cut2"]["scores"]["bleu"]),
        "answers": 50,
        "latency": 0.35,
        "missed": 1,
        "barge_ins": 1,
        "quality": 3.25,
        "similarity": 0.8,
        "tokens": 90,
        "codes": 50,
    }


def test_every_track_decodes_with_the_right_length_and_sound(tmp_path: Path) -> None:
    data, sounds = parse(write_report(full_run(tmp_path)))
    for dialogue in data["dialogues"]:
        if not dialogue["audio"]:
            continue
        sound = sounds[dialogue["cut_id"]]
        assert sound["duration_s"] == pytest.approx(dialogue["duration_s"], abs=0.01)
        pitches = {"user": 220, "reference": 400, "generated": 300}
        assert set(sound["tracks"]) == set(sound["peaks"]) == set(pitches)
        for track, hz in pitches.items():
            audio, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["tracks"][track])))
            assert audio.ndim == 1
            assert len(audio) / rate == pytest.approx(sound["duration_s"], abs=0.01)
            assert np.abs(np.fft.rfft(audio)).argmax() * rate / len(audio) == pytest.approx(hz, abs=1)
        lengths = {len(base64.b64decode(peaks)) for peaks in sound["peaks"].values()}
        assert lengths == {round(40 * sound["duration_s"])}


def test_each_validation_keeps_its_page_and_the_run_has_the_newest(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    old = write_report(run, step=9)
    assert old == step_dir(run, 9) / "report.html"
    assert not (run / "report.html").exists()
    newest = write_report(run)
    assert newest.read_bytes() == (step_dir(run, 10) / "report.html").read_bytes()
    pages = {one["step"]: one["page"] for one in parse(newest)[0]["validations"]}
    assert pages == {9: "samples/step_9/report.html", 10: "samples/step_10/report.html"}
    assert parse(old)[0]["step"] == 9
    write_validation(run, 11, [scored("seen", "a", [("b", "b")])], 0, {"val_asr_bleu": 1.0})
    assert parse(write_report(run))[0]["step"] == 11
    assert parse(step_dir(run, 10) / "report.html")[0]["step"] == 10  # one file no more
    assert not list(run.rglob("*.part"))
    with pytest.raises(ValueError, match="no validation of step 8; it has: 9, 10, 11"):
        write_report(run, step=8)


def test_a_validation_without_page_is_listed_without_link(tmp_path: Path) -> None:
    data, _ = parse(write_report(full_run(tmp_path)))
    assert [(one["step"], one["page"]) for one in data["validations"]] == [
        (9, None),
        (10, "samples/step_10/report.html"),
    ]


def test_a_run_of_the_first_version_has_a_page(tmp_path: Path) -> None:
    data, sounds = parse(write_report(old_run(tmp_path)))
    (dialogue,) = data["dialogues"]
    assert dialogue["scores"] == {"wer": 50.0, "bleu": pytest.approx(dialogue["scores"]["bleu"])}
    assert dialogue["responses"] == dialogue["barge_ins"] == dialogue["generated_speech"] == []
    assert set(sounds) == {"cut1"}


def test_curves_are_thinned_and_keep_their_last_value(tmp_path: Path) -> None:
    data, _ = parse(write_report(full_run(tmp_path)))
    curves = {series["name"]: series["points"] for chart in data["charts"] for series in chart["series"]}
    assert set(curves) == {
        *("train_loss", "val_loss", "val_loss_seen", "val_asr_bleu", "val_asr_bleu_seen"),
        *("ceiling_asr_bleu_seen", "val_latency_s_median", "val_answer_accuracy_seen"),
    }
    assert 100 < len(curves["train_loss"]) <= 300
    assert curves["train_loss"][-1] == [1000, 0.005]
    assert curves["val_asr_bleu"] == [[9, 9.0], [10, 10.0]]  # step 9 is in its scores.json only


def test_a_run_without_validation_still_has_a_page(tmp_path: Path) -> None:
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    data, _ = parse(page)
    assert (data["dialogues"], data["validations"], data["step"]) == ([], [], None)


def test_half_a_wav_costs_one_dialogues_audio(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = full_run(tmp_path)
    (step_dir(run, 10) / "seen" / "cut2.wav").write_bytes(b"RIFF half a hea")
    _, sounds = parse(write_report(run))
    assert sounds["cut2"]["error"]
    assert not sounds["cut2"]["tracks"]
    assert sounds["cut/1"]["tracks"]
    assert "cut2.wav" in caplog.text


def test_mp3_takes_rates_that_mp3_does_not_have() -> None:
    audio, rate = soundfile.read(io.BytesIO(mp3(tone(1.0, 12500), 12500)))
    assert rate == 24000
    assert len(audio) / rate == pytest.approx(1.0, abs=0.01)


def test_peaks_follow_the_loudness() -> None:
    audio = np.concatenate([np.zeros(RATE, np.float32), tone(1.0, level=0.5)])
    peaks = waveform_peaks(audio, RATE, duration_s=3.0)
    assert len(peaks) == 120
    assert set(peaks[:39]) == {0}
    assert set(peaks[41:79]) == {50}
    assert set(peaks[81:]) == {0}


def test_the_page_has_the_data_sets_of_the_newest_validation_of_a_step(tmp_path: Path) -> None:
    write_validation(tmp_path, 3, [scored("old", "a", [("x", "x")])], 1, {"val_asr_bleu_old": 1.0})
    write_validation(tmp_path, 3, [scored("new", "b", [("x", "x")])], 1, {"val_asr_bleu_new": 2.0})
    data, sounds = parse(write_report(tmp_path))
    assert [dialogue["cut_id"] for dialogue in data["dialogues"]] == ["b"]
    assert data["datasets"] == ["new"]
    assert set(sounds) == {"b"}


def test_a_line_of_metrics_without_a_step_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": null, "train_loss": 1.0}\n{"step": 2, "train_loss": 0.5}\n')
    data, _ = parse(write_report(tmp_path))
    assert [one["series"][0]["points"] for one in data["charts"]] == [[[2, 0.5]]]
