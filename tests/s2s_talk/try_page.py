"""Try the page of a running server with a recording as the microphone: `python -m tests.s2s_talk.try_page URL WAV OUT`.

Writes what was in the window at the end (OUT.png) and what came back (OUT.wav), and prints what the page says. The
recording starts when the page opens the microphone, a moment before the conversation does.
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

from tests.s2s_eval.browser import chromium

MORE_S = 2.5  # to be answered in

# in front of the page's own handlers: keep all messages, with their times
LISTEN = """
  window.kept = {audio: [], frames: [], times: [], rate: 0};
  const Original = window.WebSocket;
  window.WebSocket = class extends Original {
    constructor(address) {
      super(address);
      this.addEventListener("message", ({ data }) => {
        if (typeof data !== "string") return void kept.audio.push(new Uint8Array(data));
        const message = JSON.parse(data);
        if (message.type === "hello") kept.rate = message.target_sample_rate_hz;
        if (message.type === "frame") kept.frames.push(message), kept.times.push(performance.now());
      });
    }
  };
  document.getElementById("echo").checked = false;
  document.getElementById("connect").click();
"""
COLLECT = """
  const text = (id) => document.getElementById(id).textContent;
  const audio = btoa(kept.audio.map((frame) => String.fromCharCode(...frame)).join(""));
  const shown = ["state", "agent-text", "delay", "load", "lost", "gaps", "banner", "notice"];
  return {audio, rate: kept.rate, frames: kept.frames, times: kept.times, shown: shown.map((id) => [id, text(id)])};
"""


def main(url: str, recording: str, out: str) -> None:
    """Let the browser talk for as long as the recording lasts."""
    flags = (
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={Path(recording).absolute()}%noloop",
    )
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        chromium(Path(profile), *flags) as browser,
    ):
        browser.resize(1040, 700)
        browser.open(url)
        browser.run(LISTEN)
        time.sleep(soundfile.info(recording).duration + MORE_S)
        browser.screenshot(Path(f"{out}.png"))
        found = browser.run(COLLECT)
        problems = browser.problems
    soundfile.write(f"{out}.wav", np.frombuffer(base64.b64decode(found["audio"]), "<i2"), found["rate"])
    for name, text in found["shown"]:
        print(f"{name:12s} {text}")
    waited_ms = [frame["waited_ms"] for frame in found["frames"] if frame["heard"]]
    per_frame_ms = (found["times"][-1] - found["times"][0]) / (len(found["times"]) - 1)
    p50, p99 = np.percentile(waited_ms, [50, 99])
    print(f"{len(waited_ms)} frames heard, one in {per_frame_ms:.1f} ms")
    print(f"waited {p50:.0f} ms (median), {p99:.0f} ms (99 %)")
    print(f"console: {problems or 'nothing'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
