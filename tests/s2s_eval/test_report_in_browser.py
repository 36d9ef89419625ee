from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s2s_eval.report import write_report
from tests.s2s_eval.browser import CHROMIUM, Browser, chromium
from tests.s2s_eval.builders import scored
from tests.s2s_eval.report_runs import NASTY, full_run, large_run, old_run, write_validation

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the program chromium is not installed")

HELPERS = """
  const all = (selector) => [...document.querySelectorAll(selector)];
  const titles = () => all("#dialogues .id").map((node) => node.textContent);
  const set = (id, value) => {
    const node = document.getElementById(id);
    if (node.type === "checkbox") node.checked = value; else node.value = value;
    node.dispatchEvent(new Event(node.type === "search" ? "input" : "change"));
  };
  const until = (test) => new Promise((resolve, reject) => {
    const started = performance.now();
    (function again() {
      if (test()) resolve();
      else if (performance.now() - started > 20000) reject(new Error(`never: ${test}`));
      else setTimeout(again, 20);
    })();
  });
  const card = (id) => all(".card").find((node) => node.querySelector(".id").textContent === id);
  const show = async (id) => {
    for (const other of all(".card")) other.open = other === card(id);
    await until(() => card(id).querySelector(".turns"));
    return card(id);
  };
  const ready = async (id) => {
    const shown = await show(id);
    const audios = [...shown.querySelectorAll("audio")];
    await until(() => audios.length === 4 && audios.every((one) => one.readyState >= 1 || one.error));
    return audios;
  };
"""


@pytest.fixture(scope="module")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium_browser: Browser) -> Iterator[Browser]:
    """A browser whose console must stay empty."""
    yield chromium_browser
    assert chromium_browser.problems == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = full_run(tmp_path_factory.mktemp("run"))
    write_report(run, step=9)
    return write_report(run)


def see(browser: Browser, page: Path, script: str) -> Any:
    browser.open(page.as_uri())
    return browser.run(HELPERS + script)


def test_each_track_plays_alone_and_both_are_stereo(browser: Browser, page: Path) -> None:
    found = see(
        browser,
        page,
        """
        const audios = await ready("cut2");
        const played = [];
        for (const audio of audios) {
          audio.loop = true;
          await audio.play();
          await until(() => audio.currentTime > 0.1);
          played.push([audio.dataset.track, audios.filter((one) => !one.paused).length, audio.duration, audio.error]);
        }
        const wav = await (await fetch(audios[3].src)).arrayBuffer();
        const context = new OfflineAudioContext(2, 1, 22050);
        const sound = await context.decodeAudioData(wav);
        // a tone crosses zero twice a period
        const pitch = (channel) => sound.getChannelData(channel).reduce((count, value, i, samples) =>
          count + (i > 0 && (value > 0) !== (samples[i - 1] > 0)), 0) / 2 / sound.duration;
        return { played, pitches: [pitch(0), pitch(1)] };
        """,
    )
    assert [row[0] for row in found["played"]] == ["user", "reference", "generated", "both"]
    assert [row[1] for row in found["played"]] == [1] * 4
    assert [row[2] for row in found["played"]] == pytest.approx([4.0] * 4, abs=0.06)
    assert [row[3] for row in found["played"]] == [None] * 4
    assert found["pitches"] == pytest.approx([220, 300], abs=6)


def test_a_click_on_the_timeline_seeks_all_and_the_playhead_follows(browser: Browser, page: Path) -> None:
    box = see(
        browser,
        page,
        """
        await ready("cut2");
        card("cut2").querySelector(".tracks").scrollIntoView({ block: "center" });
        const box = card("cut2").querySelector(".tracks").getBoundingClientRect();
        return { x: box.left, y: box.top, width: box.width };
        """,
    )
    browser.click(box["x"] + box["width"] / 4, box["y"] + 10)
    found = browser.run(
        HELPERS
        + """
        const audios = all(".card[open] audio");
        await until(() => audios.every((one) => !one.seeking && one.currentTime > 0.5));
        const shares = audios.map((one) => one.currentTime / 4);
        const before = parseFloat(document.querySelector(".card[open] .playhead").style.left);
        await audios[2].play();
        await until(() => audios[2].currentTime > 1.3);
        audios[2].pause();
        return [shares, before, parseFloat(document.querySelector(".card[open] .playhead").style.left)];
        """
    )
    assert found[0] == pytest.approx([0.25] * 4, abs=0.01)
    assert found[1] == pytest.approx(25, abs=1)
    assert found[2] > 30


def test_keys_step_play_seek_and_search(browser: Browser, page: Path) -> None:
    see(browser, page, 'set("sort", "name"); await show("cut2"); card("cut2").querySelector("summary").focus();')
    where = "return all('.card[open] .id').map((node) => node.textContent)"
    for key, opened in (("k", "cut/1"), ("k", "cut/1"), ("j", "cut2")):
        browser.press(key)
        assert browser.run(HELPERS + where) == [opened]
    # what plays goes on however long the next look at it takes
    browser.run(HELPERS + 'for (const audio of await ready("cut2")) audio.loop = true;')
    playing = (
        "await until(() => all('audio').filter((one) => !one.paused).map((one) => one.dataset.track).join() === '%s')"
    )
    for keys, track in (("1", "user"), ("4", "both"), ("3", "generated"), ("3", ""), ("142", "reference"), ("2", "")):
        browser.press(*keys)
        browser.run(HELPERS + playing % track)
    browser.run(
        HELPERS + "all('audio').forEach((one) => (one.currentTime = 0)); await until(() => !all('audio')[0].seeking)"
    )
    browser.press("ArrowRight")
    browser.run(HELPERS + "await until(() => all('audio').every((one) => Math.abs(one.currentTime - 2) < 0.1))")
    browser.press("/", "j")
    assert browser.run("return [document.activeElement.id, document.activeElement.value]") == ["search", "j"]


def test_it_sorts_by_any_score_filters_and_searches(browser: Browser, page: Path) -> None:
    found = see(
        browser,
        page,
        """
        const seen = { start: titles(), orders: [...document.getElementById("sort").options].map((one) => one.value) };
        set("audible", false);
        for (const order of ["wer:worst", "wer:best", "name", "quality:worst", "latency:best"]) {
          set("sort", order); seen[order] = titles();
        }
        set("sort", "name");
        set("dataset", "new"); seen.filtered = titles();
        set("dataset", "");
        for (const words of ["HELLO", "مرحبا", "day good", "cut/", "nowhere", '</script>"']) {
          set("search", words); seen[words] = titles();
        }
        seen.count = document.getElementById("count").textContent;
        return seen;
        """,
    )
    assert found.pop("start") == ["cut2", "cut/1"]
    orders = found.pop("orders")
    assert {name.partition(":")[0] for name in orders} == {
        *("wer", "bleu", "answers", "latency", "missed", "barge_ins", "quality", "similarity", "tokens", "codes"),
        *("name", "duration"),
    }
    assert found == {
        "wer:worst": ["cut3", "cut2", "cut/1"],
        "wer:best": ["cut/1", "cut2", "cut3"],
        "name": ["cut/1", "cut2", "cut3"],
        "quality:worst": ["cut2", "cut/1", "cut3"],  # those without the score come last
        "latency:best": ["cut2", "cut/1", "cut3"],
        "filtered": ["cut3"],
        "HELLO": ["cut2"],
        "مرحبا": ["cut/1", "cut2"],
        "day good": ["cut2"],
        "cut/": ["cut/1"],
        "nowhere": [],
        '</script>"': [],
        "count": "0 of 3",
    }


def test_texts_are_shown_as_they_are(browser: Browser, page: Path) -> None:
    text, bold, direction = see(
        browser,
        page,
        """
        await show("cut/1");
        const said = all(".turns td span")[0];
        return [said.textContent.toWellFormed(), all("#dialogues td b, .turn b").length, said.dir];
        """,
    )
    assert text == NASTY.replace("\ud800", "\ufffd")
    assert (bold, direction) == (0, "auto")


def test_the_timeline_shows_speech_answers_and_barge_ins(browser: Browser, page: Path) -> None:
    found = see(
        browser,
        page,
        """
        await show("cut2");
        const left = (node) => [node.style.left, node.style.width].map(parseFloat);
        return {
          segments: all(".segment").map(left),
          events: all(".event").map((node) => [node.textContent, ...left(node)]),
          scores: all(".card[open] .body .chip").map((node) => node.textContent),
          turns: all(".lane.generated .turn").map((node) => node.textContent),
          values: all('.card[open] td[data-title="Must contain"]').map((node) => [node.textContent, node.className]),
        };
        """,
    )
    assert found["segments"] == [pytest.approx([31.25, 31.25], abs=0.2)]
    assert [event[0] for event in found["events"]] == ["0.35 s", "missed", "yields in 0.5 s", "doesn't stop"]
    assert found["events"][0][1:] == pytest.approx([22.5, 8.75], abs=0.2)
    assert found["events"][3][1:] == pytest.approx([55, 45], abs=0.2)
    assert found["scores"][0] == "WER 50 %"
    assert found["scores"][2:] == [
        *("answers 50 %", "latency 0.35 s", "missed 1", "barge-ins failed 1", "quality 3.25", "voice 0.80"),
        *("tokens right 90 %", "codes right 50 %"),
    ]
    assert found["turns"] == ["good day", "…"]
    assert found["values"] == [["Day ✓", "good"], ["long ✗", "bad"]]


def test_every_metric_is_there_and_the_main_ones_first(browser: Browser, page: Path) -> None:
    found = see(
        browser,
        page,
        """
        const seen = { folded: document.getElementById("all-metrics").open };
        document.getElementById("all-metrics").open = true;
        return { ...seen, tiles: all(".tile").map((one) => one.innerText.split("\\n")),
          scores: document.getElementById("scores").innerText,
          all: document.getElementById("all-metrics").innerText };
        """,
    )
    assert found["folded"] is False
    assert found["tiles"] == [["ASR-BLEU", "10.0", "+1.0"], ["Latency", "0.37 s"], ["Loss", "0.500"]]
    assert "floor 2.0 · ceiling 90.0" in found["scores"]
    for words in ("What is said", "Turn-taking", "codebook 1\t–\t44.0", "val_of_a_later_version\t1.250"):
        assert words in found["all"]


def test_links_lead_from_validation_to_validation(browser: Browser, page: Path) -> None:
    follow = """
      const link = all("a").find((one) => one.textContent === WANTED);
      document.getElementById("validations").open = true;
      return [link.href, document.getElementById("about").textContent.includes("step ")];
    """
    newest = page.as_uri()
    old = (page.parent / "samples" / "step_9" / "report.html").as_uri()
    assert see(browser, page, follow.replace("WANTED", '"listen"')) == [old, True]
    old_page = page.parent / "samples" / "step_9" / "report.html"
    assert see(browser, old_page, follow.replace("WANTED", '"newest report"')) == [newest, True]
    step_10 = page.parent / "samples" / "step_10" / "report.html"
    assert see(browser, step_10, follow.replace("WANTED", '"listen"')) == [old, True]


def test_five_hundred_dialogues(browser: Browser, tmp_path: Path) -> None:
    found = see(
        browser,
        write_report(large_run(tmp_path, 500)),
        """
        const seen = { cards: titles().length, filled: all(".card .body").length };
        set("sort", "wer:best"); seen.best = titles()[0];
        set("sort", "name");
        const audios = await ready("cut-321");
        await audios[2].play();
        await until(() => audios[2].currentTime > 0);
        for (const id of ["cut-000", "cut-499", "cut-250"]) await ready(id);
        seen.kept = all("audio").length; // a closed card gives its audio back
        window.scrollTo(0, document.body.scrollHeight);
        await until(() => window.scrollY > 15000);
        set("dataset", "set1"); set("search", "cut-49"); seen.found = titles();
        return seen;
        """,
    )
    assert found == {
        "cards": 500,
        "filled": 1,
        "best": "cut-000",
        "kept": 4,
        "found": ["cut-491", "cut-493", "cut-495", "cut-497", "cut-499"],
    }


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_as_wide_as_the_window(browser: Browser, page: Path, width: int) -> None:
    browser.resize(width, 900)
    widths = see(
        browser,
        page,
        """
        await ready("cut2");
        for (const fold of all(".fold")) fold.open = true;
        return [document.documentElement.scrollWidth, window.innerWidth];
        """,
    )
    browser.resize(1280, 900)
    assert widths[0] <= widths[1] == width


def test_poor_runs_are_shown_too(browser: Browser, tmp_path: Path) -> None:
    text = (
        "await new Promise((resolve) => setTimeout(resolve, 100)); return document.querySelector('main').textContent;"
    )
    empty = see(browser, write_report(tmp_path), text)
    assert browser.run('return document.getElementById("about").textContent') == "no validation was scored yet"
    assert "Nothing was logged yet." in empty
    assert "No dialogue was scored yet." in empty

    run = tmp_path / "silent"
    write_validation(run, 3, [scored("d", "cut1", [("a", "b")])], 0, {})
    silent = see(browser, write_report(run), 'await show("cut1");' + text)
    assert "No metric was computed yet." in silent
    assert "was not kept" in silent

    (run / "samples" / "step_3" / "d" / "dialogues.jsonl").unlink()
    assert "No dialogue was scored yet." in see(browser, write_report(run), text)

    old = see(browser, write_report(old_run(tmp_path)), 'await ready("cut1");' + text)
    assert "a c" in old
    assert "Answers" not in old

    broken = full_run(tmp_path)
    (broken / "samples" / "step_10" / "seen" / "cut2.wav").write_bytes(b"half a hea")
    assert "can't be read" in see(browser, write_report(broken), 'await show("cut2");' + text)
