"""Chromium without a window, driven over a pipe by the Chrome DevTools Protocol: real input events, real rendering."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
"""Path of the browser; None if there is none."""

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1000,700",
    "--remote-debugging-pipe",
]
_PATIENCE = 60.0  # seconds for an answer of the browser


class Page:
    """A tab of the browser. Methods raise `RuntimeError` with the browser's message, or `TimeoutError`."""

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving = sending, receiving
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""

    def open(self, url: str) -> None:
        """Open an address in a new tab, and wait until it is loaded."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int = 800) -> None:
        """Give the page a size in CSS pixels, such as that of a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression, as JSON; promises are awaited."""
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", str(answer)))
        return answer["result"].get("value")

    def wait(self, condition: str, timeout: float = _PATIENCE) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true within {timeout:g} s: {condition}")
            time.sleep(0.02)

    def mouse(self, kind: str, x: float, y: float, *, held: bool = False) -> None:
        """Send a mouse event.

        Args:
            kind: "mousePressed", "mouseMoved" or "mouseReleased".
            x: place from the left edge of the page in CSS pixels.
            y: place from the upper edge.
            held: whether the left button is held down during a move.
        """
        button = "left" if held or kind != "mouseMoved" else "none"
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(held), clickCount=1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = json.loads(self._receive(method, deadline))
            if answer.get("id") == number:  # else it is an event
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, method: str, deadline: float) -> bytes:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._receiving], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._receiving, 2**16) if ready else b""
            if not piece:
                raise TimeoutError(f"no answer to {method}")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return message


@contextmanager
def chromium() -> Iterator[Page]:
    """A page in a browser of its own, which ends with the block."""
    assert PROGRAM is not None
    (read_by_it, sending), (receiving, written_by_it) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(  # the protocol's pipes are numbers 3 and 4
            ["bash", "-c", f'exec "$@" 3<&{read_by_it} 4>&{written_by_it}', "bash", *command],
            pass_fds=(read_by_it, written_by_it),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_by_it)
        os.close(written_by_it)
        try:
            yield Page(sending, receiving)
        finally:
            os.close(sending)  # which ends it
            os.close(receiving)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
