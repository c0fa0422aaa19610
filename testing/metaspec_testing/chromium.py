"""Chromium without a window, driven over a pipe by the Chrome DevTools Protocol: real input events, real rendering."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
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
    """A tab of the browser. Methods raise `RuntimeError` with the browser's message, or `TimeoutError`.

    Attributes:
        complaints: errors that pages have logged or not caught, such as what a content security policy has refused.
    """

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving = sending, receiving
        self._numbers, self._rest, self._session, self._tab = itertools.count(1), b"", "", ""
        self.complaints: list[str] = []

    def open(self, url: str) -> None:
        """Open an address in a new tab, in place of the one before, and wait until it is loaded."""
        self._session, before = "", self._tab
        self._tab = self._call("Target.createTarget", url="about:blank")["targetId"]
        if before:
            self._call("Target.closeTarget", targetId=before)
        self._session = self._call("Target.attachToTarget", targetId=self._tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
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

    def mouse(self, kind: str, x: float, y: float, *, held: bool = False, button: str = "left") -> None:
        """Send a mouse event.

        Args:
            kind: "mousePressed", "mouseMoved" or "mouseReleased".
            x: place from the left edge of the page in CSS pixels.
            y: place from the upper edge.
            held: whether the button is held down during a move.
            button: "left" or "right".
        """
        used = button if held or kind != "mouseMoved" else "none"
        buttons = {"left": 1, "right": 2}[button] if held else 0
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=used, buttons=buttons, clickCount=1)

    def press(self, key: str, *, modifiers: Sequence[str] = (), kinds: Sequence[str] = ("keyDown", "keyUp")) -> None:
        """Press a key and release it.

        Args:
            key: name of the key as JavaScript's `KeyboardEvent.key` has it.
            modifiers: some of "Alt", "Control", "Meta" and "Shift", held down meanwhile.
            kinds: events to send, "keyDown" and "keyUp".
        """
        bits = sum({"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}[name] for name in modifiers)
        text = {"text": key} if len(key) == 1 and not {"Alt", "Control", "Meta"} & set(modifiers) else {}
        number = {"Tab": 9, "Enter": 13, "Escape": 27}.get(
            key, 0
        )  # without which the browser's own actions do not follow
        for kind in kinds:
            typed = text if kind == "keyDown" else {}
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, modifiers=bits, windowsVirtualKeyCode=number, **typed
            )

    def choose_files(self, selector: str, *files: Path) -> None:
        """Give files to an input of the page, as its dialog would.

        Args:
            selector: CSS selector of the input.
            files: the files.
        """
        element = self._call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        paths = [str(path) for path in files]
        self._call("DOM.setFileInputFiles", files=paths, objectId=element["result"]["objectId"])

    def downloads(self, folder: Path) -> None:
        """Let the page save files in a folder."""
        self._call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def prefer(self, scheme: str) -> None:
        """Switch the page to "dark" or "light", as the system's setting would."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def accessibility(self) -> list[dict[str, Any]]:
        """Nodes of the accessibility tree: what a screen reader is told."""
        nodes: list[dict[str, Any]] = self._call("Accessibility.getFullAXTree")["nodes"]
        return nodes

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save a picture of the page as PNG.

        Args:
            path: path of the file.
            whole: whether to show all of the page, and not only the window.
        """
        picture = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

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
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what an event of the browser complains of."""
        parameters = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")

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
