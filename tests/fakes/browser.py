"""A real browser without a window, to see a page as a person would; used by tests.

Chromium is driven by its own protocol over two pipes (Chrome DevTools Protocol,
`--remote-debugging-pipe`): JSON messages that end with a zero byte. It needs no other program.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium-headless-shell", "chromium")


@dataclass
class Browser:
    """One page that is looked at; `complaints` are errors of it and of its policy."""

    to: int
    answers: int
    session: str = ""
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _number: int = 0
    _loaded: bool = False
    _read: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; what is told meanwhile is remembered."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, f"{method}: {told['error']}"
                result: dict[str, Any] = told["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            data = os.read(self.answers, 1 << 16)
            assert data, "the browser is gone"
            self._read += data
        message, _, self._read = self._read.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        match told.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.complaints.append(str(told["params"]["exceptionDetails"]))
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(told["params"]["args"]))
            case "Log.entryAdded":
                self.complaints.append(told["params"]["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(told["params"]["request"]["url"])
            case _:
                pass
        return told

    def open(self, page: Path) -> None:
        """Shows a file, to the end of its loading."""
        self._loaded = False
        self.call("Page.navigate", url=page.as_uri())
        while not self._loaded:
            self._next()

    def resize(self, width: int, height: int = 900) -> None:
        """Gives the window a size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def prefer(self, scheme: str, medium: str = "") -> None:
        """Asks for `light` or `dark` colours, on a screen or on paper (`print`)."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=medium, features=features)

    def js(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page; a promise is waited for."""
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def type(self, text: str) -> None:
        """Types a text where the cursor is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, text: str = "") -> None:
        """Presses a key."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def seen(self, selector: str = "body") -> str:
        """The text of an element as a person sees it: what is hidden is not in it."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def scrolls_sideways(self) -> bool:
        """Whether some of the page is to the right of the window."""
        return bool(
            self.js("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        )

    def screenshot(self, path: Path) -> None:
        """Writes what is in the window as a picture, for people."""
        done = self.call("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(done["data"]))


@contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """A browser with its files in `directory`. Raises `FileNotFoundError` when there is none."""
    program = next((found for name in PROGRAMS if (found := shutil.which(name))), None)
    if program is None:
        raise FileNotFoundError("no Chromium: install the package `chromium-headless-shell`")
    commands, to = os.pipe()
    answers, said = os.pipe()
    # The pipes are 3 and 4 there, whatever their numbers are here.
    wrapped = 'exec "$0" "$@" 3<&"$COMMANDS" 4>&"$SAID"'
    running = subprocess.Popen(
        [
            *("bash", "-c", wrapped, program, "--remote-debugging-pipe", "--headless"),
            # The page is ours, and a container has no namespaces to spare.
            *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"),
            f"--user-data-dir={directory / 'browser'}",
        ],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(directory),
            "COMMANDS": str(commands),
            "SAID": str(said),
        },
        pass_fds=(commands, said),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(said)
    try:
        one = Browser(to, answers)
        target = one.call("Target.createTarget", url="about:blank")["targetId"]
        attached = one.call("Target.attachToTarget", targetId=target, flatten=True)
        one.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            one.call(f"{domain}.enable")
        yield one
    finally:
        running.kill()
        running.wait()
        os.close(to)
        os.close(answers)
