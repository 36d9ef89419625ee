"""The page in headless Chromium, whose microphone plays a file."""

import asyncio
import wave
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from s2s_talk.talker import Talker
from tests.s2s_eval.browser import CHROMIUM, Browser, chromium
from tests.s2s_talk.builders import PATIENT, client, noise, server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the program chromium is not installed")

HELPERS = """
  const byId = (id) => document.getElementById(id);
  const until = (test) => new Promise((resolve, reject) => {
    const started = performance.now();
    (function again() {
      if (test()) resolve();
      else if (performance.now() - started > 60000) reject(new Error(`never: ${test}; ${byId("banner").textContent}`));
      else setTimeout(again, 50);
    })();
  });
"""


@pytest.fixture(scope="module")
def chromium_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """It hears noise at another rate than the model's, then silence."""
    recording = tmp_path_factory.mktemp("microphone") / "user.wav"
    with wave.open(str(recording), "wb") as out:
        out.setparams((1, 2, 48000, 0, "NONE", ""))
        out.writeframes(np.repeat(noise(100).ravel(), 3).tobytes())
    flags = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={recording}%noloop",
    )
    with chromium(tmp_path_factory.mktemp("profile"), *flags) as browser:
        yield browser


@pytest.fixture
def browser(chromium_browser: Browser) -> Iterator[Browser]:
    """A browser whose console must stay empty."""
    yield chromium_browser
    assert chromium_browser.problems == []


def press_start(browser: Browser) -> None:
    box = browser.run("return document.getElementById('connect').getBoundingClientRect().toJSON()")
    browser.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_a_user_talks_and_the_agent_answers(browser: Browser, talker: Talker) -> None:
    with server(talker) as address:
        browser.open(address)
        press_start(browser)
        found = browser.run(
            HELPERS
            + """
            await until(() => document.querySelectorAll(".frame").length > 25 && byId("agent-text").textContent
              && byId("user-text").textContent && byId("delay").textContent !== "–");
            const heights = [...document.querySelectorAll(".frame .user i")].map((bar) => parseInt(bar.style.height));
            return {
              state: byId("state").textContent, button: byId("connect").textContent, banner: byId("banner").hidden,
              loudest: Math.max(...heights), kinds: [...new Set([...document.querySelectorAll(".token")]
                .map((node) => node.className))], speech: document.querySelectorAll(".frame .speech i").length,
              level: Number(byId("level").getAttribute("aria-valuenow")), left: byId("left").textContent,
            };
            """
        )
        assert (found["state"], found["button"], found["banner"]) == ("talking", "Stop", True)
        assert found["loudest"] > 30  # the recording was heard
        assert {"token bos", "token text"} <= set(found["kinds"])
        assert found["speech"] > 0
        press_start(browser)  # it says Stop now
        state = browser.run(
            HELPERS + "await until(() => byId('connect').textContent === 'Start talking');"
            "return [byId('state').textContent, byId('banner').hidden]"
        )
        assert state == ["not connected", True]


def test_the_page_tells_why_a_conversation_ends_and_starts_again(browser: Browser, talker: Talker) -> None:
    with server(talker, replace(PATIENT, max_duration_s=1.2, ending_notice_s=0.4)) as address:
        browser.open(address)
        for _ in range(2):
            press_start(browser)
            banner, notices = browser.run(
                HELPERS
                + "const told = [byId('notice').textContent];"
                + "const tell = () => told.push(byId('notice').textContent);"
                + "new MutationObserver(tell).observe(byId('notice'), {childList: true, subtree: true});"
                + "await until(() => !byId('banner').hidden); tell();"
                + "return [byId('banner').textContent, told.join(' | ')]"
            )
            assert "has lasted 1.2 s: connect again" in banner
            assert "ends in 0 s" in notices  # a busy machine's server tells after it that it is late


def test_the_page_tells_that_all_places_are_taken(browser: Browser, talker: Talker) -> None:
    async def hold(address: str) -> None:
        async with client(address) as first, client(address) as second:
            for user in (first, second):
                await user.ws.receive_json()
            await asyncio.to_thread(press_start, browser)
            script = "await until(() => !byId('banner').hidden); return byId('banner').textContent"
            assert "all 2 places are taken: try again later" in await asyncio.to_thread(browser.run, HELPERS + script)

    with server(talker) as address:
        browser.open(address)
        asyncio.run(hold(address))


def test_the_page_is_whole_without_the_network_and_says_when_the_server_is_gone(
    browser: Browser, talker: Talker
) -> None:
    with server(talker) as address:
        browser.open(address)
        addresses = browser.run("return performance.getEntriesByType('resource').map((one) => one.name)")
        assert addresses
        assert all(one.startswith((address, "data:")) for one in addresses)
        press_start(browser)
        browser.run(HELPERS + "await until(() => document.querySelectorAll('.frame').length > 3)")
    banner = browser.run(HELPERS + "await until(() => !byId('banner').hidden); return byId('banner').textContent")
    assert "The server was stopped" in banner
