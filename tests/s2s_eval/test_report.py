import base64
import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from s2s_eval.report import write_report
from s2s_eval.report_audio import mp3_data_url, waveform_peaks
from s2s_eval.samples import SampleAudio, SampleKeeper, kept_ids, step_dir, write_audio, write_scores
from tests.s2s_eval.browser import CHROMIUM, Browser, chromium
from tests.s2s_eval.builders import RATE, scored, tone

CODEC_RATE = 22050
NASTY = '</script><b>bold</b> & "quotes" – ünï'


class DataIsland(HTMLParser):
    """Collects the page's data and everything that it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.loaded: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._inside = tag == "script" and found.get("id") == "data"
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.text += data


def parse(page: Path) -> tuple[dict[str, Any], list[str]]:
    parser = DataIsland()
    parser.feed(page.read_text(encoding="utf-8"))
    return json.loads(parser.text), parser.loaded


def make_run(folder: Path) -> Path:
    """Return a run with an old validation and a last one: two data sets, dialogues of 2 and 4 s, one without audio."""
    run = folder / "my-run"
    dialogues = [
        scored("seen", "cut/1", [(NASTY, NASTY)], ceiling="x"),
        scored("seen", "cut2", [("good day", "good day"), ("", "so long")], ceiling="good day"),
        scored("new", "cut3", [("wrong words here", "the right ones")]),
    ]
    keeper = SampleKeeper(8)
    for dialogue in dialogues[:2]:
        seconds = dialogue.duration_s
        audio = SampleAudio(
            tone(seconds), RATE, tone(seconds, CODEC_RATE, 300), tone(seconds, 24000, 400), 24000, CODEC_RATE
        )
        keeper.add(dialogue.dataset, dialogue.cut_id, audio)
    for step in (9, 10):
        write_audio(step_dir(run, step), dialogues, keeper, 8)
        metrics = {"val_asr_bleu": float(step), "val_asr_bleu_seen": 12.5, "ceiling_asr_bleu_seen": 90.0}
        write_scores(step_dir(run, step), step, dialogues, metrics, 8, {"asr": "package:x", "bleu": "nrefs:1"})
    rows = [{"step": i, "train_loss": 5 / i} for i in range(1, 1001)]
    rows[9] |= {"val_loss": 0.5, "val_loss_seen": 0.4, "val_asr_bleu": 10.0}
    rows.append({"step": 1001, "train_loss": float("nan")})
    text = "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 1002, "tra'
    (run / "metrics.jsonl").write_text(text)
    return run


def test_the_page_holds_the_last_validation(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path))
    assert page == tmp_path / "my-run" / "report.html"
    data, loaded = parse(page)
    assert all(link.startswith("data:") for link in loaded)
    assert "http" not in "".join(loaded)
    assert (data["run"], data["step"]) == ("my-run", 10)
    assert data["metrics"]["val_asr_bleu"] == 10
    assert data["metrics"]["val_loss_seen"] == 0.4
    samples = {sample["cut_id"]: sample for sample in data["samples"]}
    assert set(samples) == {"cut/1", "cut2", "cut3"}
    assert samples["cut/1"]["scored_turns"][0]["reference"] == NASTY
    assert samples["cut2"]["asr_wer"] == pytest.approx(50)
    assert [turn["wer"] for turn in samples["cut2"]["scored_turns"]] == [0, 100]
    assert samples["cut3"]["audio"] is None


def test_every_audio_decodes_with_the_right_length_and_sound(tmp_path: Path) -> None:
    data, _ = parse(write_report(make_run(tmp_path)))
    heard = [sample for sample in data["samples"] if sample["audio"]]
    assert len(heard) == 2
    for sample in heard:
        pitches = {"user": [220], "reference": [400], "generated": [300], "mix": [220, 300]}
        assert set(sample["audio"]) == set(pitches)
        for track, channels_hz in pitches.items():
            encoded = sample["audio"][track].removeprefix("data:audio/mpeg;base64,")
            audio, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)), always_2d=True)
            assert len(audio) / rate == pytest.approx(sample["duration_s"], abs=0.01)
            assert audio.shape[1] == len(channels_hz)
            for channel, hz in zip(audio.T, channels_hz, strict=True):
                loudest = np.abs(np.fft.rfft(channel)).argmax() * rate / len(audio)
                assert loudest == pytest.approx(hz, abs=1)
        assert all(len(peaks) == len(sample["peaks"]["user"]) for peaks in sample["peaks"].values())


def test_curves_are_thinned_and_keep_their_last_value(tmp_path: Path) -> None:
    data, _ = parse(write_report(make_run(tmp_path)))
    curves = {series["name"]: series["points"] for chart in data["charts"] for series in chart["series"]}
    assert set(curves) == {"train_loss", "val_loss", "val_loss_seen", "val_asr_bleu"}
    assert 100 < len(curves["train_loss"]) <= 300
    assert curves["train_loss"][-1] == [1000, 0.005]


def test_a_run_without_validation_still_has_a_page(tmp_path: Path) -> None:
    data, _ = parse(write_report(tmp_path))
    assert data["samples"] == []
    assert data["step"] is None


def test_mp3_takes_rates_that_mp3_does_not_have() -> None:
    encoded = mp3_data_url(tone(1.0, 12500), 12500).partition(",")[2]
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    assert rate == 24000
    assert len(audio) / rate == pytest.approx(1.0, abs=0.01)


def test_peaks_follow_the_loudness() -> None:
    audio = np.concatenate([np.zeros(RATE, np.float32), tone(1.0, level=0.5)])
    peaks = waveform_peaks(audio, RATE, duration_s=3.0)
    assert len(peaks) == 120
    assert set(peaks[:39]) == {0}
    assert set(peaks[41:79]) == {50}
    assert set(peaks[81:]) == {0}


def test_the_same_dialogues_are_kept_whatever_the_order() -> None:
    ids = [f"cut{i}" for i in range(20)]
    audio = SampleAudio(tone(0.1), RATE, tone(0.1), tone(0.1), RATE, RATE)
    keepers = [SampleKeeper(3), SampleKeeper(3)]
    for keeper, order in zip(keepers, [ids, ids[::-1]], strict=True):
        for cut_id in order:
            keeper.add("d", cut_id, audio)
    for keeper in keepers:
        assert {cut_id for cut_id in ids if keeper.get("d", cut_id)} == set(kept_ids(ids, 3))
    assert len(kept_ids(ids, 3)) == 3


HELPERS = """
  const titles = () => [...document.querySelectorAll("#samples .id")].map((node) => node.textContent);
  const set = (id, value) => {
    const node = document.getElementById(id);
    if (node.type === "checkbox") node.checked = value; else node.value = value;
    node.dispatchEvent(new Event("change"));
  };
  const until = (test) => new Promise((resolve, reject) => {
    const started = performance.now();
    (function again() {
      if (test()) resolve();
      else if (performance.now() - started > 20000) reject(new Error(`never: ${test}`));
      else setTimeout(again, 20);
    })();
  });
  const audios = () => [...document.querySelectorAll("audio")];
  const press = (key) => document.querySelector("details[open] summary").dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true }));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page in Chromium, from its file:// address."""
    folder = tmp_path_factory.mktemp("browser")
    page = write_report(make_run(folder))
    with chromium(folder / "profile") as browser:
        browser.open(page.as_uri())
        yield browser


@pytest.mark.skipif(CHROMIUM is None, reason="the program chromium is not installed")
class TestInChromium:
    @pytest.fixture(autouse=True)
    def _no_console_error(self, browser: Browser) -> Iterator[None]:
        yield
        assert browser.problems == []

    def test_every_audio_has_its_duration(self, browser: Browser) -> None:
        found = browser.run(
            HELPERS
            + """
            for (const card of document.querySelectorAll("details")) card.open = true;
            await until(() => audios().length === 8 && audios().every((one) => one.readyState >= 1 || one.error));
            return audios().map((one) => [one.dataset.track, one.duration, one.error && one.error.message]);
            """
        )
        assert [error for _, _, error in found] == [None] * 8
        for wanted in ("user", "reference", "generated", "mix"):
            durations = sorted(duration for track, duration, _ in found if track == wanted)
            assert durations == pytest.approx([2.0, 4.0], abs=0.05)

    def test_it_sorts_and_filters(self, browser: Browser) -> None:
        found = browser.run(
            HELPERS
            + """
            const seen = [titles()];
            set("audible", false);
            for (const order of ["worst", "best", "name"]) { set("sort", order); seen.push(titles()); }
            set("dataset", "new"); seen.push(titles());
            set("dataset", ""); set("audible", true); seen.push(titles());
            return seen;
            """
        )
        assert found == [
            ["cut2", "cut/1"],
            ["cut3", "cut2", "cut/1"],
            ["cut/1", "cut2", "cut3"],
            ["cut/1", "cut2", "cut3"],
            ["cut3"],
            ["cut/1", "cut2"],
        ]

    def test_a_click_seeks_and_keys_play_one_at_a_time(self, browser: Browser) -> None:
        found = browser.run(
            HELPERS
            + """
            const open = document.querySelector("details[open]");
            const mine = [...open.querySelectorAll("audio")];
            await until(() => mine.length === 4 && mine.every((one) => one.readyState >= 1));
            const box = open.querySelector(".tracks").getBoundingClientRect();
            open.querySelector(".lane").dispatchEvent(new MouseEvent("click", {
              bubbles: true, clientX: box.left + box.width / 4, clientY: box.top + 5,
            }));
            await until(() => mine.every((one) => !one.seeking));
            const starts = mine.map((one) => one.currentTime / one.duration);
            const playing = [];
            for (const [key, track] of [["3", 2], ["4", 3]]) {
              press(key);
              const from = mine[track].currentTime;
              await until(() => mine[track].currentTime > from + 0.05);
              playing.push(mine.filter((one) => !one.paused).map((one) => one.dataset.track));
            }
            press("4");
            playing.push(mine.filter((one) => !one.paused).map((one) => one.dataset.track));
            return { starts, playing };
            """
        )
        assert found["starts"] == pytest.approx([0.25] * 4, abs=0.03)
        assert found["playing"] == [["generated"], ["mix"], []]

    def test_texts_are_shown_as_they_are(self, browser: Browser) -> None:
        found = browser.run(
            """
            for (const card of document.querySelectorAll("details")) card.open = true;
            await new Promise((resolve) => setTimeout(resolve, 200));
            return [document.getElementById("samples").innerText, document.querySelectorAll("#samples b").length];
            """
        )
        assert NASTY in found[0]
        assert found[1] == 0
