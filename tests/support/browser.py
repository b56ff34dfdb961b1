"""A page in a headless Chromium, over the DevTools protocol: JSON messages, each ended by a zero byte, in two pipes."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chromium import BROWSER, pipes  # examples/web/chromium.py

__all__ = ["BROWSER", "BrowserPage", "browser"]
LIMIT_S = 60


class BrowserPage:
    """One page.

    Args:
        send: pipe to the browser.
        receive: pipe from it.

    Attributes:
        problems: exceptions, console messages and failed loads so far.
        requests: addresses that were loaded so far.
    """

    def __init__(self, send: io.BufferedWriter, receive: io.BufferedReader) -> None:
        self.send, self.receive, self.count = send, receive, 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.loaded = 0
        self.session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Return the result of a command."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params, **self.session}
        self.send.write(json.dumps(message).encode() + b"\0")
        self.send.flush()
        while True:
            answer = self._receive()
            if answer.get("id") == self.count:
                assert "error" not in answer, f"{method}: {answer}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        """Return the next message, noted if it is an event."""
        letters = bytearray()
        while (letter := self.receive.read(1)) != b"\0":
            assert letter, "the browser has ended"
            letters += letter
        answer: dict[str, Any] = json.loads(letters)
        event, params = answer.get("method"), answer.get("params", {})
        if event in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Network.loadingFailed"):
            self.problems.append(json.dumps(params)[:500])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded += 1
        return answer

    def open(self, file: Path, width: int, dark: bool = False) -> None:
        """Open a file in a window of some width, in light or dark colors."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)
        before = self.loaded
        self.call("Page.navigate", url=file.absolute().as_uri())
        while self.loaded == before:
            self._receive()

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self) -> bytes:
        """Return a PNG of the page in its full height."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, format="png", clip=self._extent())
        return base64.b64decode(shot["data"])

    def _extent(self) -> dict[str, float]:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}


@contextmanager
def browser() -> Iterator[BrowserPage]:
    """Yield an empty page in a headless browser, which is ended after ``LIMIT_S`` at the latest."""
    with pipes(LIMIT_S) as (send, receive):
        yield BrowserPage(send, receive)
