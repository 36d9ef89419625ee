"""Headless Chromium, driven through its DevTools pipe: file descriptors 3 and 4, messages that end with a NUL."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio --autoplay-policy=no-user-gesture-required "
    "--remote-debugging-pipe"
)


class Browser:
    """One page at a time; ``problems`` collects console errors, warnings and uncaught exceptions of all of them."""

    def __init__(self, send: int, receive: int) -> None:
        self._send = os.fdopen(send, "wb", buffering=0)
        self._receive = os.fdopen(receive, "rb")
        self._last_id = 0
        self._session: dict[str, str] = {}
        self._target = ""
        self._size = {"width": 1280, "height": 900}
        self.problems: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        message = {"id": self._last_id, "method": method, "params": params, **self._session}
        self._send.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, address: str) -> None:
        """Open a page in place of the one before."""
        if self._target:
            self._session = {}
            self.call("Target.closeTarget", targetId=self._target)
        target = self._target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.call("Runtime.enable")
        self.call("Log.enable")
        self.call("Page.enable")
        self.resize(**self._size)
        self.call("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def resize(self, width: int, height: int) -> None:
        """Give the window a size in CSS pixels, for this page and those opened later."""
        self._size = {"width": width, "height": height}
        if self._target:
            self.call("Emulation.setDeviceMetricsOverride", **self._size, deviceScaleFactor=1, mobile=False)

    def screenshot(self, path: Path) -> None:
        """Write what is in the window as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def press(self, *keys: str) -> None:
        """Press keys as a user does: wherever the focus is."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, x: float, y: float) -> None:
        """Click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def run(self, script: str) -> Any:
        """Return what the body of an async function returns."""
        answer = self.call(
            "Runtime.evaluate", expression=f"(async () => {{{script}}})()", awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _next(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._receive.read(1)) != b"\0":
            assert byte, "chromium has ended"
            data += byte
        message: dict[str, Any] = json.loads(data)
        params = message.get("params", {})
        is_error = (
            message.get("method") == "Runtime.exceptionThrown"
            or (message.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"))
            or (message.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"))
        )
        if is_error:
            self.problems.append(json.dumps(params))
        return message


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Browser]:
    """Start Chromium with an own profile and these flags beside the usual ones, and end it afterwards."""
    to_browser, to_us = os.pipe(), os.pipe()
    # a shell puts the pipes where Chromium wants them
    command = f'exec "$@" 3<&{to_browser[0]} 4>&{to_us[1]}'
    process = subprocess.Popen(
        ["bash", "-c", command, "bash", str(CHROMIUM), *FLAGS.split(), *flags, f"--user-data-dir={profile}"],
        pass_fds=(to_browser[0], to_us[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(to_us[1])
    try:
        yield Browser(to_browser[1], to_us[0])
    finally:
        process.terminate()
        process.wait(timeout=30)
