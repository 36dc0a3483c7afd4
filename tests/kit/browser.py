"""A real headless Chromium, driven through two pipes: no driver, no websocket, no network.

Chromium speaks its DevTools protocol, JSON objects that end in NUL, on descriptors 3 (to it) and 4 (from
it) when it is started with --remote-debugging-pipe.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.patience import PATIENCE_S

NAMES = ("chromium", "chromium-browser", "google-chrome")

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # which needs a user other than root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_PUT_IN_PLACE = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
_KEY_CODES = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def find_chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab, and everything it said and asked for."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._pending = b""
        self._last_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path) -> float:
        """Open a file; return the seconds until its load event."""
        started, since = time.monotonic(), len(self.events)
        self._call("Page.navigate", url=path.as_uri())
        self._wait_for("Page.loadEventFired", since)
        return time.monotonic() - started

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript; a promise is awaited."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, as a person would."""
        for key in keys:
            code = _KEY_CODES[key]
            told = {"key": key, "code": key, "windowsVirtualKeyCode": code}
            text = {"text": "\r"} if key == "Enter" else {}
            down = "keyDown" if text else "rawKeyDown"
            self._call("Input.dispatchKeyEvent", type=down, **told, **text)
            self._call("Input.dispatchKeyEvent", type="keyUp", **told)
        self._settle()  # a dialog tells of its closing a moment later

    def type(self, text: str) -> None:
        """Write a text where the focus is."""
        self._call("Input.insertText", text=text)

    def look(
        self, *, width: int = 1280, height: int = 800, scale: float = 1, is_dark: bool = False
    ) -> None:
        """Give the page a window of this size, in this colour scheme, without motion."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = "dark" if is_dark else "light"
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._settle()

    def screenshot(self, path: Path) -> None:
        """Save what the window shows as PNG."""
        self._settle()
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def complaints(self) -> list[str]:
        """Return what the page, or the browser about it, wrote to the console; uncaught errors too."""
        found: list[str] = []
        for event in self.events:
            method, params = event["method"], event.get("params", {})
            if method == "Runtime.consoleAPICalled":
                found.append(json.dumps(params["args"]))
            elif method == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"]))
            elif method == "Log.entryAdded":
                found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Return the address of everything that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _settle(self) -> None:
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        rest = memoryview(json.dumps(message).encode() + b"\0")
        while rest:
            rest = rest[os.write(self._to, rest) :]
        while True:
            answer = self._receive(method)
            if answer.get("id") == self._last_id:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _wait_for(self, method: str, since: int) -> None:
        if any(event["method"] == method for event in self.events[since:]):
            return
        while True:
            event = self._receive(method)
            self.events.append(event)
            if event["method"] == method:
                return

    def _receive(self, wanted: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._from], [], [], deadline - time.monotonic())
            assert ready, f"Chromium said nothing of {wanted} for {PATIENCE_S:g} s"
            data = os.read(self._from, 1 << 20)
            assert data, f"Chromium ended before it answered {wanted}"
            self._pending += data
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium_page(chromium: str, profile: Path) -> Iterator[Page]:
    """Start Chromium with a new profile in an empty folder, and give one page of it."""
    (read_commands, to_browser), (from_browser, write_answers) = os.pipe(), os.pipe()
    # Away from 3 and 4, so that putting one of them in place does not overwrite the other.
    ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read_commands, write_answers)]
    os.close(read_commands)
    os.close(write_answers)
    command = [chromium, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(
        [sys.executable, "-c", _PUT_IN_PLACE, *map(str, ours), *command],
        pass_fds=ours,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in ours:
        os.close(fd)
    try:
        yield Page(to_browser, from_browser)
    finally:
        os.close(to_browser)  # it ends when nobody commands it any more
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser)
